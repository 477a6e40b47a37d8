"""The tree keeps the house rules: folders, links, names, sizes, and what must not appear in it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from house.checkout import PACKAGE_FOLDERS, ROOT, listed_files, python_files

MAX_LINES = 400
LONG_FILES = {  # over MAX_LINES, each for its reason
    "tests/adapters/test_residency.py",  # one table of states, every way through it
    "tests/adapters/test_uploads.py",  # one test per refusal
}
NAMES_AFTER_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
# Loading these can run code that a file's author chose. Weights are safetensors only; a training
# run may read back its own state, by torch's restricted reader.
CODE_LOADERS = re.compile(
    r"^\s*(?:import|from)\s+(?:pickle|cPickle|dill|joblib|cloudpickle|shelve|marshal)\b"
    r"|\btorch\.load\((?![^)\n]*weights_only=True)|allow_pickle=True|trust_remote_code=True",
    re.MULTILINE,
)


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS)
def test_each_package_folder_is_linked_under_the_import_root(folder: str) -> None:
    link = ROOT / "src" / "polygraft" / folder
    assert (ROOT / folder / "__init__.py").is_file()
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{folder}"


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS)
def test_git_stores_the_links_as_links(folder: str) -> None:
    command = ["git", "ls-files", "--stage", "--", f"src/polygraft/{folder}"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert listed.stdout.startswith("120000 ")


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS)
def test_package_folders_hold_no_code_at_import(folder: str) -> None:
    """A bare `import kernels` from the checkout must do nothing: see CONTRIBUTING.md, traps 1."""
    body = ast.parse((ROOT / folder / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


def test_every_folder_with_python_in_it_is_a_package() -> None:
    """setuptools leaves a folder without `__init__.py` out of the wheel without a word."""
    folders = {path.parent for path in python_files() if path.parts[0] in (*PACKAGE_FOLDERS, "src")}
    missing = [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()]
    assert missing == []


def test_no_module_is_named_after_nothing() -> None:
    named = [str(path) for path in python_files() if path.stem in NAMES_AFTER_NOTHING]
    assert named == []


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in python_files()}
    assert {name for name, length in lengths.items() if length > MAX_LINES} <= LONG_FILES


def test_nothing_loads_a_format_that_can_run_code() -> None:
    this_file = Path(__file__).relative_to(ROOT)
    found = [
        f"{path}: {match.group().strip()}"
        for path in python_files()
        if path != this_file
        for match in CODE_LOADERS.finditer((ROOT / path).read_text())
    ]
    assert found == []


def test_only_the_trainer_reads_back_training_state() -> None:
    readers = {str(path) for path in python_files() if "torch.load(" in (ROOT / path).read_text()}
    this_file = str(Path(__file__).relative_to(ROOT))
    assert {path for path in readers - {this_file} if not path.startswith("trainer/")} == set()


def test_the_tree_check_accepts_every_file() -> None:
    command = [sys.executable, "-P", "scripts/check_tree.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout + result.stderr == ""
    assert result.returncode == 0


def test_the_tree_check_reports_each_fault(tmp_path: Path) -> None:
    faults = {
        "space.py": ("x = 1 \n", "trailing whitespace"),
        "end.md": ("no line end", "exactly one line end"),
        "conflict.txt": ("<<<<<<< ours\n", "conflict mark"),
        "broken.toml": ("a = \n", "does not parse"),
        "broken.yaml": ("a: [\n", "does not parse"),
        "large.txt": ("x" * 700_000 + "\n", "may be committed"),
    }
    for name, (content, _) in faults.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "link").symlink_to("nowhere")
    command = [sys.executable, "-P", "scripts/check_tree.py"]
    paths = [str(tmp_path / name) for name in [*faults, "link"]]
    result = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    for name, (_, fault) in faults.items():
        assert re.search(rf"/{name}: .*{fault}", result.stdout), name
    assert "/link: link leads nowhere" in result.stdout


def is_bash(path: Path) -> bool:
    full = ROOT / path
    return full.is_file() and full.read_bytes().startswith(b"#!/usr/bin/env bash\n")


SCRIPTS = [path for path in listed_files("scripts", ".ci") if is_bash(path)]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shell_scripts_parse_stop_at_the_first_error_and_can_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert "set -euo pipefail" in (ROOT / script).read_text()
    assert (ROOT / script).stat().st_mode & 0o111
