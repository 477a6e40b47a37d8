#!/usr/bin/env python3
"""Measure the engine's multi-adapter LoRA on a CPU against the other ways to compute it.

    .venv/bin/python benchmarks/cpu_lora.py --threads 1 --json cpu_lora.json

One site: q|k|v of SmolLM2-135M's shape, rank 16, and one square module, ranks 8 and 64. All ways
run in this process in turns, forwards and backwards; each is checked against float64 first. The
least of all rounds counts; of one thread its own CPU time, which others on the machine touch least.
"""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.cpu_lora_ways import BASE, WAYS, LoraCase
from benchmarks.figures import Grid
from benchmarks.options import Options, parse_options

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # norm of the error, of the update alone
OURS = "native"


@dataclass(frozen=True, slots=True)
class Shape:
    """One step at one site."""

    inputs: int
    slices: tuple[int, ...]
    rank: int
    rows: int
    adapters: int

    @property
    def name(self) -> str:
        """For the table."""
        outputs = "+".join(map(str, self.slices))
        step = f"{self.rows} rows, {self.adapters} adapters"
        return f"{self.inputs} to {outputs}, r {self.rank}: {step}"


QKV = (576, (576, 192, 192), 16)
SQUARE = (896, (896,))
PRESETS: dict[str, tuple[tuple[Shape, ...], int]] = {  # shapes, rounds
    "smoke": ((Shape(64, (64, 32, 32), 8, 8, 3), Shape(64, (64,), 4, 5, 1)), 2),
    "issue": (
        (
            *(Shape(*QKV, rows, adapters)
              for rows, adapters in ((8, 1), (8, 4), (32, 4), (32, 16), (128, 4))),
            *(Shape(*SQUARE, rank, rows, adapters)
              for rank, rows, adapters in ((8, 8, 4), (8, 32, 16), (64, 32, 4), (64, 128, 16))),
        ),
        60,
    ),
}  # fmt: skip


def main() -> None:
    """Print the table, a row per way; the best of the others and ours are named in each column."""
    options = parse_options(__doc__, PRESETS, "issue")
    torch.set_num_threads(options.threads)
    shapes, rounds = PRESETS[options.preset]
    dtype = getattr(torch, options.dtype)
    times = {
        shape: measure(shape, dtype, rounds, options.seed, options.threads) for shape in shapes
    }
    grid_of(options, times).report(Console(), options.json)


@torch.inference_mode()
def measure(
    shape: Shape, dtype: torch.dtype, rounds: int, seed: int, threads: int
) -> dict[str, float]:
    """Microseconds of a call: the least of so many rounds, by way."""
    case = LoraCase.make(
        shape.inputs, shape.slices, shape.rank, shape.rows, shape.adapters, dtype=dtype, seed=seed
    )
    calls: dict[str, Callable[[], object]] = {}
    for name, make in WAYS.items():
        add = make(case)
        if name != BASE:
            check(name, case, add, BOUNDS[dtype])
        y = torch.zeros(shape.rows, sum(shape.slices), dtype=dtype)
        calls[name] = _bound(add, y)
    clock = time.thread_time if threads == 1 else time.perf_counter
    return {name: 1e6 * seconds for name, seconds in in_turns(calls, rounds, clock).items()}


def _bound(add: Callable[[Tensor], object], y: Tensor) -> Callable[[], object]:
    return lambda: add(y)


def check(name: str, case: LoraCase, add: Callable[[Tensor], object], bound: float) -> None:
    """Raise AssertionError unless the way adds what the definition says."""
    y = torch.zeros(len(case.x), sum(case.slices), dtype=case.x.dtype)
    add(y)
    wanted = case.expected()
    error = float((y.double() - wanted).norm() / wanted.norm())
    assert error <= bound, f"{name} is wrong: the error is {error:.2e}"


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Least seconds of each; the order turns round after every round."""
    order = list(calls)
    for name in order:  # first calls allocate
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in order if number % 2 == 0 else order[::-1]:
            start = clock()
            calls[name]()
            seconds[name].append(clock() - start)
    return {name: min(found) for name, found in seconds.items()}


def grid_of(options: Options, times: Mapping[Shape, Mapping[str, float]]) -> Grid:
    """A row per way; then ours over the best of the others."""
    others = [name for name in WAYS if name not in (OURS, BASE)]

    def row(name: str, values: Iterable[float]) -> tuple[str, tuple[float, ...]]:
        return name, tuple(values)

    return Grid(
        "LoRA on a CPU",
        f"Microseconds a call, {options.dtype}, {options.threads} threads.",
        ("way", *(shape.name for shape in times)),
        (
            *(row(name, (found[name] for found in times.values())) for name in WAYS),
            row(
                f"{OURS} / best of the others",
                (found[OURS] / min(found[name] for name in others) for found in times.values()),
            ),
        ),
    )


if __name__ == "__main__":
    main()
