#!/usr/bin/env python3
"""Measure where a decode step's time goes, and how far it is from its floor.

    .venv/bin/python benchmarks/profile_step.py --json profile.json

Drives the engine's steps on this thread: first plain, for the time of a step, then profiled, for
its parts, less what profiling cost. The floor is measured in the same process, in turn with it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import torch
from rich.console import Console

from benchmarks.figures import Grid
from benchmarks.floor import MatrixProducts, median_seconds, read_bandwidth
from benchmarks.jobs import make_job
from benchmarks.models import MODELS
from benchmarks.options import Options, parse_options
from benchmarks.prepared_engine import PreparedEngine
from benchmarks.progress import Progress, progress_bar
from benchmarks.runner import adapter_names
from benchmarks.step_profiler import StepProfiler
from benchmarks.workload import Shape, Workload, make_workload
from polygraft.server.engine.messages import SequenceOutput


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is measured."""

    model: str
    num_adapters: int
    batch_sizes: tuple[int, ...]
    num_steps: int  # plain ones, and as many profiled
    prompt_tokens: int = 96
    num_rounds: int = 3  # of plain, profiled and floor


PRESETS = {
    "smoke": Preset("tiny", 2, (1, 4), 4, 8, 1),
    "issue": Preset("smollm2-135m", 16, (1, 8, 32), 20),
}
WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One batch size. Milliseconds."""

    step: float  # median of the plain steps
    parts: dict[str, float]  # by category; they add up to `step`
    matrix_products: float  # alone
    base_step: float  # of requests for the base alone


class SteppedEngine:
    """An engine that this thread steps; outputs are counted and dropped."""

    def __init__(self, prepared: PreparedEngine) -> None:
        self.prepared = prepared
        self._submitted = 0
        self._answering: set[str] = set()  # requests that have begun to answer, and not ended
        prepared.engine.attach(prepared.residency, self._take)

    def begin(self, workload: Workload) -> None:
        """Submit all requests and compute their prompts."""
        for request in workload.requests:
            self._submitted += 1
            self.prepared.submit(str(self._submitted), request)
        while len(self._answering) < len(workload.requests):
            self.prepared.engine.step()

    def decode(self, num_steps: int) -> list[float]:
        """Seconds of each of so many steps, all of the whole batch; AssertionError if not."""
        batch_size, seconds = len(self._answering), []
        for _ in range(num_steps):
            start = time.perf_counter()
            self.prepared.engine.step()
            seconds.append(time.perf_counter() - start)
        assert len(self._answering) == batch_size, "a request ended while it was measured"
        return seconds

    def finish(self) -> None:
        """End every request."""
        for request_id in self._answering:
            self.prepared.engine.abort(request_id)
        while self._answering:
            self.prepared.engine.step()

    def _take(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            if output.error is not None:
                raise output.error
            self._answering.add(output.request_id)
            if output.is_final:
                self._answering.remove(output.request_id)


def decode_workload(preset: Preset, num_adapters: int, batch_size: int, seed: int) -> Workload:
    """Requests that all decode for long enough."""
    prompt, vocab_size = preset.prompt_tokens, MODELS[preset.model]["vocab_size"]
    return make_workload(
        Shape(vocab_size, prompt, prompt, output_tokens(preset)),
        adapter_names(num_adapters),
        num_requests=batch_size,
        concurrency=batch_size,
        seed=seed,
    )


def output_tokens(preset: Preset) -> int:
    """Enough for both kinds of step and for those that answer while others' prompts are read."""
    largest = max(preset.batch_sizes)
    return WARM_UP_STEPS + 2 * preset.num_steps + largest + largest * preset.prompt_tokens // 64


def measure_batch(
    preset: Preset,
    engine: SteppedEngine,
    floor: MatrixProducts,
    batch_size: int,
    seed: int,
) -> StepTimes:
    """All rounds of one batch size."""
    profiler, plain, base, products = StepProfiler(), list[float](), list[float](), list[float]()
    for round_index in range(preset.num_rounds):
        for num_adapters in (preset.num_adapters, 0):
            workload = decode_workload(preset, num_adapters, batch_size, seed + round_index)
            engine.begin(workload)
            engine.decode(WARM_UP_STEPS)
            if num_adapters:
                plain += engine.decode(preset.num_steps)
                profiler.run(lambda: engine.decode(preset.num_steps))
            else:
                base += engine.decode(preset.num_steps)
            engine.finish()
        products.append(median_seconds(floor.step(batch_size), preset.num_steps))
    step = 1e3 * median(plain)
    return StepTimes(
        step=step,
        parts={category: step * share for category, share in profiler.shares().items()},
        matrix_products=1e3 * median(products),
        base_step=1e3 * median(base),
    )


def grid_of(preset: Preset, options: Options, times: dict[int, StepTimes], reading: float) -> Grid:
    """The table: one column per batch size, the largest parts first. `reading`: milliseconds."""
    sizes = list(times)

    def row(name: str, values: Iterable[float]) -> tuple[str, tuple[float, ...]]:
        return name, tuple(values)

    categories = {category for measured in times.values() for category in measured.parts}
    largest_first = sorted(categories, key=lambda c: -times[sizes[-1]].parts.get(c, 0))
    return Grid(
        "A decode step",
        f"{preset.model}, {options.dtype}, {options.threads} threads, {preset.num_adapters} "
        f"adapters by Zipf, contexts from {preset.prompt_tokens} tokens on; milliseconds by batch "
        "size. Parts: shares seen by a profiler, less its own cost. The floor is measured alone.",
        ("", *(f"B={size}" for size in sizes)),
        (
            row("whole step", (times[size].step for size in sizes)),
            *(
                row(f"- {category}", (times[size].parts.get(category, 0.0) for size in sizes))
                for category in largest_first
            ),
            row("whole step, base alone", (times[size].base_step for size in sizes)),
            row("floor: matrix products alone", (times[size].matrix_products for size in sizes)),
            row("floor: reading the weights", [reading] * len(sizes)),
            row("step / matrix products", (t.step / t.matrix_products for t in times.values())),
            row("tokens/s while decoding", (1e3 * size / t.step for size, t in times.items())),
        ),
    )


def measure(preset: Preset, options: Options, progress: Progress) -> Grid:
    """Every batch size."""
    largest = max(preset.batch_sizes)
    job = make_job(
        preset.model,
        preset.num_adapters,
        dtype=options.dtype,
        threads=options.threads,
        seed=options.seed,
        max_concurrency=largest,
        max_sequence_tokens=preset.prompt_tokens + output_tokens(preset),
    )
    prepared = PreparedEngine(job)
    try:
        torch.set_num_threads(options.threads)  # after the engine, which takes them all away
        engine = SteppedEngine(prepared)
        floor = MatrixProducts(MODELS[preset.model], prepared.engine.base.dtype)
        times = {}
        for size in preset.batch_sizes:
            progress(f"batch of {size}")
            times[size] = measure_batch(preset, engine, floor, size, options.seed)
        reading = 1e3 * floor.weight_bytes / read_bandwidth()
        return grid_of(preset, options, times, reading)
    finally:
        prepared.close()


def main() -> int:
    """Measure, print the parts and write them."""
    options = parse_options(__doc__, PRESETS, "issue")
    preset = PRESETS[options.preset]
    with progress_bar(total=1 + len(preset.batch_sizes)) as progress:
        progress("making the model and loading it")
        grid = measure(preset, options, progress)
    grid.report(Console(), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
