"""Every variant at every site and load: a graph over rotated weights, in turns, checked first."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.sites import LLAMA_3_8B, REHEARSAL, Load, SiteCase, SiteShape, SiteWeights
from benchmarks.gpu.timing import Replay, capture, interleaved, seconds_of
from benchmarks.gpu.variants import BASE, VARIANTS, Launch, VariantAbsent, make

COPIES = 8  # of the weights of a site: the smallest, o_proj, would fit in L2
ROUNDS = 60
WARM_UP = 20
BOUND = 1.5e-2  # norm of the error; those who round S and the sum on their way are near 5e-3
# The rows first: what is left out when time is short is the rest.
LOADS = (
    Load(1, 1),
    Load(32, 8),
    Load(256, 8),
    Load(128, 64),
    Load(2048, 8),
    Load(8, 8),
    Load(32, 32),
    Load(32, 8, (64,)),
    Load(64, 8, (8, 16, 64), base_rows=32),
    Load(2048, 1, (128,)),
)
REHEARSAL_LOADS = (Load(1, 1), Load(20, 3, (16, 8), base_rows=4))
COMPILERS = 8  # processes


def sizes(bench: Bench) -> tuple[tuple[SiteShape, ...], tuple[Load, ...]]:
    """Sites and loads of this run."""
    if bench.rehearsal:
        return REHEARSAL, REHEARSAL_LOADS
    return LLAMA_3_8B, LOADS


def compile_all(bench: Bench) -> None:
    """Run every captured variant once in parallel processes, so that the table finds all compiled.

    A variant that cannot run says so here, before anything is timed.
    """
    shapes, loads = sizes(bench)
    work = [(shape, load) for load in loads for shape in shapes]
    once = partial(compile_case, rehearsal=bench.rehearsal)
    found: Iterable[dict[str, str]]
    if bench.rehearsal:
        found = map(once, work)
    else:
        pool = ProcessPoolExecutor(COMPILERS, mp_context=get_context("spawn"))
        found = pool.map(once, work)
    for (shape, load), failures in zip(work, found, strict=True):
        bench.emit("compiled", site=shape.name, load=load.name, failures=failures)


def compile_case(work: tuple[SiteShape, Load], *, rehearsal: bool) -> dict[str, str]:
    """What failed, by variant."""
    shape, load = work
    device = torch.device("cpu" if rehearsal else "cuda")
    dtype = torch.float16 if rehearsal else torch.bfloat16
    weights = SiteWeights(shape, copies=1, pool_rows=load.pool_rows, dtype=dtype, device=device)
    case, failures = SiteCase(weights, load), {}
    for name, variant in VARIANTS.items():
        if variant.is_eager:
            continue
        try:
            make(name, case)(0)
            if device.type == "cuda":
                torch.cuda.synchronize()
        except VariantAbsent as absent:
            failures[name] = str(absent)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"[:300]
    return failures


def run(bench: Bench) -> None:
    """Load by load, all sites of one before the next, as long as there is time."""
    shapes, loads = sizes(bench)
    longest = 0.0
    for load in loads:
        before = bench.seconds_left
        if before < 1.2 * longest:
            bench.emit("left_out", load=load.name, why="no time left")
            continue
        for shape in shapes:
            measure_case(bench, shape, load)
        longest = max(longest, before - bench.seconds_left)


def measure_case(bench: Bench, shape: SiteShape, load: Load) -> None:
    """One row of the table."""
    copies = 2 if bench.rehearsal else COPIES
    weights = SiteWeights(
        shape, copies=copies, pool_rows=load.pool_rows, dtype=bench.dtype, device=bench.device
    )
    case = SiteCase(weights, load)
    replays: dict[str, Replay] = {}
    errors: dict[str, float] = {}
    absent: dict[str, str] = {}
    eager: dict[str, float] = {}
    with torch.inference_mode():
        for name, variant in VARIANTS.items():
            try:
                launch = make(name, case)
                if variant.has_adapters:
                    errors[name] = case.error(launch(0))
                    if not errors[name] <= BOUND:
                        absent[name] = f"wrong: the error is {errors[name]:.3g}"
                        continue
                if variant.is_eager:
                    eager[name] = _eager_time(launch, bench)
                else:
                    replays[name] = capture(launch, copies, bench.device)
            except VariantAbsent as reason:
                absent[name] = str(reason)
            except Exception as error:  # one system's failure is a cell, not the end of the table
                absent[name] = f"{type(error).__name__}: {error}"[:300]
        rounds, warm_up = (2, 0) if bench.rehearsal else (ROUNDS, WARM_UP)
        times = interleaved(replays, bench.device, rounds=rounds, warm_up=warm_up)
    bench.emit(
        "case",
        site=shape.name,
        load=load.name,
        rows=load.rows,
        adapters=load.adapters,
        ranks=list(load.ranks),
        base_rows=load.base_rows,
        bytes=case.bytes_moved(with_adapters=True),
        base_bytes=case.bytes_moved(with_adapters=False),
        flops=case.flops(),
        us={name: found.to_json() for name, found in times.items()},
        eager_us=eager,
        errors=errors,
        absent=absent,
        base=BASE,
    )


def _eager_time(launch: Launch, bench: Bench) -> float:
    """Microseconds, its launches from Python included: the median of a few."""
    times = sorted(seconds_of(lambda: launch(0), bench.device) for _ in range(3))
    return 1e6 * times[1]
