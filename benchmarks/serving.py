#!/usr/bin/env python3
"""Measure serving many adapters: Polygraft in process and over gRPC, beside other systems.

    .venv/bin/python benchmarks/serving.py --preset quick --json serving.jsonl

Prompts of 32 to 128 tokens, 64 tokens out, adapters of rank 8 and 16 on q, k, v and o asked for by
Zipf, on a random-weight model of SmolLM2-135M's shape that is made locally.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import argparse
import os

from rich.console import Console

from benchmarks.presets import PRESETS
from benchmarks.progress import progress_bar
from benchmarks.report import Row, print_lora_tax, print_table
from benchmarks.runner import num_steps, run_benchmark
from benchmarks.systems import SYSTEMS, missing_peer
from benchmarks.worker import run_worker


def system_names(text: str) -> list[str]:
    """A list of systems, each known and installed."""
    names = text.split(",")
    for name in names:
        if name not in SYSTEMS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SYSTEMS)}")
        if why := missing_peer(name):
            raise argparse.ArgumentTypeError(why)
    return names


def installed_systems() -> list[str]:
    """Every system that can be measured here; says which are left out, and why."""
    missing = {name: missing_peer(name) for name in SYSTEMS}
    for why in dict.fromkeys(why for why in missing.values() if why):
        print(why, file=sys.stderr)
    return [name for name, why in missing.items() if why is None]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--systems", type=system_names, help="a,b,c; all that are installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON lines")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print a table and write the lines; or be one system's process."""
    arguments = parse_arguments()
    if arguments.worker:
        run_worker(arguments.worker)
        return 0
    return measure_and_report(arguments)


def measure_and_report(arguments: argparse.Namespace) -> int:
    """The parent process: a progress bar on stderr, results on stdout."""
    preset = PRESETS[arguments.preset]
    systems = arguments.systems or installed_systems()
    with progress_bar(total=num_steps(preset, systems)) as on_progress:
        outcome = run_benchmark(
            preset,
            systems,
            dtype=arguments.dtype,
            threads=arguments.threads,
            seed=arguments.seed,
            on_progress=on_progress,
        )
    for failure in outcome.failures:
        print(failure, file=sys.stderr)
    if outcome.rows:
        report(outcome.rows, arguments)
    return 1 if outcome.failures else 0


def report(rows: list[Row], arguments: argparse.Namespace) -> None:
    """A table on stdout, JSON lines in the file."""
    width = None if sys.stdout.isatty() else 120  # columns, where no terminal tells
    print_table(rows, Console(width=width), threads=arguments.threads)
    print_lora_tax(rows, Console(width=width))
    if arguments.json:
        arguments.json.write_text("".join(row.to_json_line() + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
