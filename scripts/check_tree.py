#!/usr/bin/env python3
"""Check files for what no editor should leave behind; with no arguments, every file git knows.

Reports trailing whitespace, a missing or doubled last line end, YAML and TOML that do not parse,
merge conflict marks, links that lead nowhere, and files over the size limit. Changes nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

MAX_BYTES = 600_000
MAX_ASSET_BYTES = 5_000_000  # the bundled base, under src/polygraft/assets/
CONFLICT = re.compile(rb"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
TRAILING_SPACE = re.compile(rb"[ \t]+$", re.MULTILINE)


def main(names: list[str]) -> int:
    """Print one line per fault; the exit code is 1 if there was any."""
    paths = [Path(name) for name in names or tracked_files()]
    faults = [f"{path}: {fault}" for path in paths for fault in faults_of(path)]
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


def tracked_files() -> list[str]:
    """Files git tracks or would add, that are still there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted({name for name in listed.stdout.split("\0") if name and os.path.lexists(name)})


def faults_of(path: Path) -> Iterator[str]:
    """What is wrong with one file, in words."""
    if path.is_symlink():
        if not path.exists():
            yield f"link leads nowhere: {path.readlink()}"
        return
    content = path.read_bytes()
    is_asset = "assets" in path.parts
    limit = MAX_ASSET_BYTES if is_asset else MAX_BYTES
    if len(content) > limit:
        yield f"{len(content)} bytes; at most {limit} may be committed"
    if is_asset or b"\0" in content or "_pb2" in path.name or not content:
        return
    yield from text_faults(content)
    yield from syntax_faults(path, content)


def text_faults(content: bytes) -> Iterator[str]:
    """Line by line faults of a text file."""
    for fault, pattern in (("trailing whitespace", TRAILING_SPACE), ("conflict mark", CONFLICT)):
        if found := pattern.search(content):
            line = content[: found.start()].count(b"\n") + 1
            yield f"line {line}: {fault}"
    if not content.endswith(b"\n") or content.endswith(b"\n\n"):
        yield "must end with exactly one line end"


def syntax_faults(path: Path, content: bytes) -> Iterator[str]:
    """Whether a YAML or TOML file parses."""
    try:
        if path.suffix in {".yaml", ".yml"}:
            list(yaml.safe_load_all(content))
        elif path.suffix == ".toml":
            tomllib.loads(content.decode())
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        yield f"does not parse: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
