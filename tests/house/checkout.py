"""The checkout as git sees it: which files would be committed, and a clean copy of them."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE_FOLDERS = ("server", "adapters", "kernels", "protos", "trainer")


def listed_files(*patterns: str) -> list[Path]:
    """Paths relative to ROOT of files that git tracks or would add (links too)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run(
        [*command, *patterns], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = sorted(set(filter(None, listed.stdout.split("\0"))))
    return [Path(name) for name in names if (ROOT / name).exists() or (ROOT / name).is_symlink()]


def python_files() -> list[Path]:
    """Every Python file that people wrote (generated stubs left out)."""
    return [path for path in listed_files("*.py") if "_pb2" not in path.name]


def copy_checkout(destination: Path) -> None:
    """Copy every listed file to `destination`, links as links, as a fresh clone would have them."""
    for path in listed_files():
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target, follow_symlinks=False)
