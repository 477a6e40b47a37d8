#!/usr/bin/env python3
"""Run every benchmark, one after the other, and write one record of them all.

    .venv/bin/python benchmarks/all.py --out record

Writes what each measured as JSON, and `record.md` with the tables, the machine, the date and the
versions. Some 30 minutes on two cores with the peers installed; nothing else should run meanwhile.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import argparse
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version

from benchmarks import peers
from benchmarks.figures import Figures, Grid
from benchmarks.report import Row, machine, markdown_rows
from benchmarks.systems import SYSTEMS, missing_peer

FOLDER = Path(__file__).resolve().parent
PROGRAMS = {  # program to how its result is read
    "serving.py": None,
    "latency.py": Figures,
    "fairness.py": Figures,
    "scale.py": Figures,
    "prefix_cache.py": Figures,
    "profile_step.py": Grid,
}
PRESETS = ("smoke", "issue")
LIBRARIES = ("torch", "transformers", "peft", "grpcio")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--preset", choices=PRESETS, default="issue")
    parser.add_argument("--systems", help="of serving.py: a,b,c; all that are installed")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each system")
    return parser.parse_args()


def main() -> int:
    """Run all; the exit code is 1 if one failed. The record holds what could be measured."""
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    commands = {program: command_of(program, arguments) for program in PROGRAMS}
    seconds = {}
    failed = []
    for program, command in commands.items():
        print(f"== {program}", flush=True)
        result_of(program, out).unlink(missing_ok=True)
        start = time.monotonic()
        if subprocess.run([sys.executable, "-P", *command]).returncode != 0:
            failed.append(program)
        seconds[program] = time.monotonic() - start
    (out / "record.md").write_text(record_of(out, commands, seconds, failed))
    print(f"{out / 'record.md'}: {sum(seconds.values()) / 60:.0f} minutes", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def command_of(program: str, arguments: argparse.Namespace) -> list[str]:
    """The program and its options, as one would type them after `python`."""
    command = [str(FOLDER / program), "--preset", arguments.preset, "--dtype", arguments.dtype]
    command += ["--threads", str(arguments.threads)]
    if program == "serving.py" and arguments.systems:
        command += ["--systems", arguments.systems]
    return [*command, "--json", str(result_of(program, arguments.out))]


def result_of(program: str, out: Path) -> Path:
    """Where a program leaves its result."""
    return out / Path(program).with_suffix(".json").name


def record_of(
    out: Path,
    commands: dict[str, list[str]],
    seconds: dict[str, float],
    failed: Sequence[str],
) -> str:
    """The Markdown text."""
    sections = [f"# Benchmarks of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n\n{environment()}\n"]
    for program, command in commands.items():
        typed = " ".join([f"benchmarks/{program}", *command[1:-2]])
        how = f"\n`{typed}`, {seconds[program] / 60:.1f} min.\n"
        result = result_of(program, out)
        text = section_of(program, result) if result.exists() else f"## {program}\n"
        if program in failed:
            text += "\n**It failed, or a system in it did.**\n"
        sections.append(text + how)
    return "\n".join(sections)


def section_of(program: str, path: Path) -> str:
    """What one program measured."""
    reader = PROGRAMS[program]
    if reader is not None:
        return reader.from_json(path.read_text()).to_markdown()
    names = {field.name for field in fields(Row)}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return markdown_rows([Row(**{n: v for n, v in line.items() if n in names}) for line in lines])


def environment() -> str:
    """Machine and versions, one per line; peers that are left out say why."""
    known = [f"- {library} {version(library)}" for library in LIBRARIES]
    names = {entry.peer: name for name, entry in SYSTEMS.items() if entry.peer}
    for peer, system in names.items():
        known.append(f"- {missing_peer(system) or peers.version(peer)}")
    return "\n".join([f"- {machine()}", f"- Polygraft at commit {commit()}", *known])


def commit() -> str:
    """The checkout's commit, marked if files differ from it."""
    git = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty", "--abbrev=10"]
    described = subprocess.run(git, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
