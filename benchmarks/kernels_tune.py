#!/usr/bin/env python3
"""Measure every candidate kernel of every bucket on this GPU, and write the dispatcher's table.

    .venv/bin/python benchmarks/kernels_tune.py --rows 1 16 32 64 --minutes 9
    .venv/bin/python benchmarks/kernels_tune.py --rehearse --out /tmp/table.json

The linear sites of Llama-3-8B, bfloat16, eight rotating copies of the weights; each form is checked
against float32, then captured as a graph and timed in turns with the others (the protocol of `make
gpu-check`). The table is written after each row bucket, and merged with what it held of others, so
a long measurement can be made in several commands. Serving reads the table where it is written by
default, kernels/fused/measured. --rehearse: tiny sizes on the CPU, in Triton's interpreter; its
times mean nothing.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):  # and in the processes that compile
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from benchmarks.gpu import machine
from benchmarks.gpu.sites import LLAMA_3_8B, REHEARSAL, SiteCase, SiteShape, SiteWeights
from benchmarks.gpu.timing import Replay, Run, capture, interleaved
from benchmarks.gpu.tuning import Measured, candidates, column_buckets, load_of, select
from polygraft.kernels.fused.dispatch import describe, target_of, tiles_of
from polygraft.kernels.fused.measured_table import FOLDER, MeasuredTable, file_name
from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity
from polygraft.kernels.fused.scratch import CounterArena, Scratch
from polygraft.kernels.fused.tiles import Bucket, Target, TileConfig, block_rows

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
COPIES = 8  # Why: of o_proj a single copy stays in L2, and decode would be timed without its reads
FEW_COPIES = 2  # where products, not reads, are what takes time
ROUNDS, WARM_UP = 60, 20
BOUND = 1.5e-2
COMPILERS = 8  # processes


@dataclass(frozen=True, slots=True)
class Tuning:
    """One run of this program."""

    target: Target
    sites: tuple[SiteShape, ...]
    device: torch.device
    dtype: torch.dtype
    rounds: int
    warm_up: int
    rehearsal: bool

    def keys(self, rows: int) -> Iterator[tuple[SiteShape, Bucket, int]]:
        """Every site, bucket and column bucket of steps of `rows` rows."""
        for shape in self.sites:
            bucket = Bucket.forward(rows, shape.inputs, shape.slices)
            for columns in column_buckets(rows, block_rows(rows, self.target)):
                yield shape, bucket, columns

    def forms(self, bucket: Bucket, columns: int) -> list[TileConfig]:
        """The candidates; of a rehearsal, whose interpreter is slow, one of each variant."""
        found = candidates(bucket, columns, self.target)
        if self.rehearsal:
            return list({config.variant: config for config in reversed(found)}.values())
        return found


def tuning_of(*, rehearse: bool) -> Tuning:
    """What is measured on this machine. Raises ValueError for a GPU that has no tiles."""
    if rehearse:
        return Tuning("sm_90", REHEARSAL, torch.device("cpu"), torch.float16, 2, 0, True)
    device = torch.device("cuda", torch.cuda.current_device())
    return Tuning(
        target_of(device), LLAMA_3_8B, device, torch.bfloat16, ROUNDS, WARM_UP, False
    )  # fmt: skip


def measure(tuning: Tuning, rows: int) -> list[Measured]:
    """All sites and column buckets of one row bucket."""
    work = [(tuning, shape, bucket, columns) for shape, bucket, columns in tuning.keys(rows)]
    if not tuning.rehearsal:
        # Why: compiling takes longer than timing, and Triton keeps what any process compiled.
        with ProcessPoolExecutor(COMPILERS, mp_context=get_context("spawn")) as pool:
            list(pool.map(_run_once, work))
    return [found for case in work for found in measure_bucket(*case)]


def _run_once(work: tuple[Tuning, SiteShape, Bucket, int]) -> None:
    """Every candidate of a bucket once; what fails will fail again, and be told, when timed."""
    for _, weights, case, config in _cases(*work, copies=1):
        try:
            launches(weights, case, config)(0)
            torch.cuda.synchronize()
        except Exception:
            continue


def measure_bucket(
    tuning: Tuning, shape: SiteShape, bucket: Bucket, columns: int
) -> Iterator[Measured]:
    """Every candidate that computes what it should, timed in turns; the others are named."""
    copies = 1 if tuning.rehearsal else COPIES if bucket.rows < 1024 else FEW_COPIES
    replays: dict[str, Replay] = {}
    configs: dict[str, TileConfig] = {}
    with torch.inference_mode():
        for name, weights, case, config in _cases(tuning, shape, bucket, columns, copies=copies):
            try:
                run = launches(weights, case, config)
                error = case.error(_as_tensor(run(0)))
                if error > BOUND:
                    print(f"WRONG  {shape.name} {name}: error {error:.3g}", file=sys.stderr)
                    continue
                replays[name] = capture(run, copies, tuning.device)
                configs[name] = config
            except Exception as error:  # a form that does not fit the chip is no candidate
                print(f"failed {shape.name} {name}: {error}"[:300], file=sys.stderr)
        times = interleaved(replays, tuning.device, rounds=tuning.rounds, warm_up=tuning.warm_up)
    reckoned = {
        tiles_of(config.variant, bucket, columns, tuning.target, config.block_m)
        for config in configs.values()
        if config.variant in ("base", "inline")
    }
    for name, config in configs.items():
        yield Measured(bucket, columns, config, times[name], config in reckoned)


def _cases(
    tuning: Tuning, shape: SiteShape, bucket: Bucket, columns: int, *, copies: int
) -> Iterator[tuple[str, SiteWeights, SiteCase, TileConfig]]:
    """Candidates with names of their own. Those with tiles of one height share the adapters."""
    by_height: dict[int, tuple[SiteWeights, SiteCase]] = {}
    for index, config in enumerate(tuning.forms(bucket, columns)):
        load = load_of(bucket.rows, config.block_m, columns)
        if load is None:
            continue
        if config.block_m not in by_height:
            weights = SiteWeights(
                shape, copies=copies, pool_rows=max(load.pool_rows, 1), dtype=tuning.dtype,
                device=tuning.device,
            )  # fmt: skip
            by_height[config.block_m] = weights, SiteCase(weights, load)
        name = f"{index}: M {bucket.rows}, {columns} columns, {describe(config)}"
        yield name, *by_height[config.block_m], config


def launches(weights: SiteWeights, case: SiteCase, config: TileConfig) -> Run:
    """A function that launches this form on copy i of the weights, with its tables and scratch."""
    from polygraft.kernels.fused import launch

    rows, shape, device = case.load.rows, case.shape, case.x.device
    host = ColumnPlan(PlanCapacity(rows, max(case.load.pool_rows, 1), config.block_m))
    host.fill(case.segments)
    plan = ColumnPlan(host.capacity, device)
    plan.copy_(host)
    bucket = Bucket(rows, (shape.inputs,), shape.slices)
    widest = max((rank for _, rank in case.load.rank_rows()), default=1)
    arena = CounterArena(1, config.num_row_tiles(rows), device)
    scratch = Scratch.for_launches([(bucket, config)], widest, device)
    scratch = scratch.with_ready(arena.take())
    y = torch.empty(rows, shape.outputs, dtype=case.x.dtype, device=device)

    def run(index: int) -> object:
        copy = weights.copies[index]
        if config.variant == "producers":
            arena.zero_()  # a step zeroes the counters of all its launches at once
        return launch.lora_linear(
            case.x, copy.weight, None, copy.a, copy.bt, weights.scale, *plan.tensors,
            shape.slices, config=config, scratch=scratch, out=y,
        )  # fmt: skip

    return run


def _as_tensor(result: object) -> torch.Tensor:
    assert isinstance(result, torch.Tensor)
    return result


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; leaves the process on a mistake or `--help`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="row buckets")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no row bucket after them")
    parser.add_argument("--out", type=Path, help="of the table; default: where serving reads it")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU, interpreted")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all row buckets were measured; 1 when time was up before; 3 without a GPU."""
    options = parse(arguments)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is imported
    elif missing := machine.why_no_gpu():
        print(missing, file=sys.stderr)
        return machine.NO_GPU
    here = machine.describe_rehearsal() if options.rehearse else machine.describe()
    triton = ".".join(here.triton.split(".")[:2])
    out = options.out or FOLDER / file_name(here.gpu, triton)
    tuning = tuning_of(rehearse=options.rehearse)
    start = time.monotonic()
    left = list(dict.fromkeys(options.rows))
    while left and time.monotonic() - start < 60 * options.minutes:
        rows = left.pop(0)
        entries = select(measure(tuning, rows))
        table = MeasuredTable(here.gpu, triton, entries, here.to_json())
        write(table, out)
        best = ", ".join(sorted({describe(entry.tiles) for entry in entries}))
        print(f"M {rows}: {len(entries)} buckets; {best}", file=sys.stderr)
    print(out)
    if left:
        print(f"not measured, as time is up: --rows {' '.join(map(str, left))}", file=sys.stderr)
    return 1 if left else 0


def write(table: MeasuredTable, out: Path) -> None:
    """Replace the buckets of `table` in the file; keep its others."""
    entries = {(entry.bucket, entry.columns): entry for entry in table.entries}
    rows = {entry.bucket.rows for entry in table.entries}
    kept = MeasuredTable.from_json(out.read_text()).entries if out.exists() else ()
    for entry in kept:
        # Why not by bucket: other heights of tile of one row bucket would not go together.
        if entry.bucket.rows not in rows:
            entries.setdefault((entry.bucket, entry.columns), entry)
    ordered = sorted(
        entries.values(),
        key=lambda e: (e.bucket.rows, e.bucket.inputs, e.bucket.outputs, e.columns),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".part")
    unfinished.write_text(replace(table, entries=ordered).to_json())
    unfinished.replace(out)


if __name__ == "__main__":
    sys.exit(main())
