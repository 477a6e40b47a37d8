#!/usr/bin/env python3
"""Measure serving many adapters: Polygraft in process and over gRPC, beside PEFT's `generate`.

    .venv/bin/python benchmarks/serving.py --preset quick --json serving.jsonl

Prompts of 32 to 128 tokens, 64 tokens out, adapters of rank 8 and 16 on q, k, v and o asked for by
Zipf, on a random-weight model of SmolLM2-135M's shape that is made locally.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path


def make_package_importable() -> None:
    """Let `import benchmarks` find this folder.

    Why not through sys.path: with the checkout on it, our `kernels/` would shadow the library of
    that name, which transformers imports when it finds one.
    """
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["benchmarks"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    from benchmarks.presets import PRESETS
    from benchmarks.systems import SYSTEMS

    def system_names(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in SYSTEMS]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SYSTEMS)}")
        return names

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--systems", type=system_names, default=list(SYSTEMS), help="a,b,c")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON lines")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print a table and write the lines; or be one system's process."""
    make_package_importable()
    arguments = parse_arguments()
    if arguments.worker:
        from benchmarks.worker import run_worker

        run_worker(arguments.worker)
        return 0
    return measure_and_report(arguments)


def measure_and_report(arguments: argparse.Namespace) -> int:
    """The parent process: a progress bar on stderr, results on stdout."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.presets import PRESETS
    from benchmarks.report import print_table
    from benchmarks.runner import WorkerFailed, num_steps, run_benchmark

    preset = PRESETS[arguments.preset]
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=num_steps(preset, arguments.systems), completed=-1)
        try:
            rows = run_benchmark(
                preset,
                arguments.systems,
                dtype=arguments.dtype,
                threads=arguments.threads,
                seed=arguments.seed,
                on_progress=lambda text: bar.update(task, advance=1, description=text),
            )
        except WorkerFailed as failure:
            bar.console.print(str(failure), markup=False)
            return 1
        bar.update(task, advance=1, description="done")
    width = None if sys.stdout.isatty() else 120  # columns, where no terminal tells
    print_table(rows, Console(width=width), threads=arguments.threads)
    if arguments.json:
        arguments.json.write_text("".join(row.to_json_line() + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
