"""Runs a program of benchmarks/ as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from house.checkout import ROOT


def start_program(
    name: str, *arguments: str | Path, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """The ended program, whatever its exit code."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--threads", "1"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


def run_program(name: str, *arguments: str | Path) -> str:
    """What it printed; AssertionError with its complaints if it failed."""
    ended = start_program(name, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
