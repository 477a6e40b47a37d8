"""Whether the kernel is right on this GPU: against float64, against itself, against neighbours."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.fused import COMPUTING, FusedSite
from benchmarks.gpu.fuzz import REHEARSAL_SHAPES, SHAPES, FuzzCase, Shape, make_case
from benchmarks.gpu.sites import (
    HOPELESS,
    LLAMA_3_8B,
    REHEARSAL,
    Load,
    SiteCase,
    SiteShape,
    SiteWeights,
)
from benchmarks.gpu.timing import capture
from polygraft.kernels.fused.tiles import Variant
from polygraft.kernels.segments import LoraSegment

WANTED_CASES = 200
REPLAYS = 100
WORKERS = 6  # processes that compile and compute at once, each some 600 MB on the GPU
BOUND = {torch.bfloat16: 1e-2, torch.float16: 2e-3}  # norm of the error over that of the answer


def run(bench: Bench) -> None:
    """Fuzz first; then replays, isolation and graphs at real sizes, site by site."""
    fuzz(bench)
    shapes: tuple[SiteShape, ...] = LLAMA_3_8B
    loads: tuple[Load, ...] = (Load(8, 4), Load(32, 8), Load(256, 8))
    some = Load(32, 8)
    if bench.rehearsal:
        shapes, loads, some = REHEARSAL, (), Load(9, 2)
    for shape in shapes:
        for load in loads:
            check_site(bench, shape, load)
    for variant in COMPUTING:  # also those that the dispatcher does not choose here
        check_site(bench, shapes[1], some, variant)


def fuzz(bench: Bench) -> None:
    """Forward and gradient of X, at least 200 cases."""
    shapes = REHEARSAL_SHAPES if bench.rehearsal else SHAPES
    cases = 5 if bench.rehearsal else -(-WANTED_CASES // len(shapes))
    work = partial(fuzz_shape, cases=cases, dtype=bench.dtype, device=bench.device)
    if bench.rehearsal:
        found = [work(shape) for shape in shapes]
    else:
        with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(work, shapes))
    for shape, errors in zip(shapes, found, strict=True):
        for kind in ("forward", "gradient"):
            bench.emit(
                "fuzz",
                what=kind,
                shape=f"{shape.inputs} -> {'+'.join(map(str, shape.slices))}",
                rows=list(shape.rows),
                cases=len(errors[kind]),
                worst=max(errors[kind]),
                bound=BOUND[bench.dtype],
                dtype=str(bench.dtype).removeprefix("torch."),
            )


def fuzz_shape(
    shape: Shape, *, cases: int, dtype: torch.dtype, device: torch.device
) -> dict[str, list[float]]:
    """The errors of so many cases of one shape."""
    errors: dict[str, list[float]] = {"forward": [], "gradient": []}
    for seed in range(cases):
        case = make_case(seed, shape, dtype, device)
        x = case.x.double().requires_grad_()
        wanted = case.expected(x)
        variant = (None, *COMPUTING)[seed % (1 + len(COMPUTING))]
        errors["forward"].append(_error(_forward(case, variant), wanted.detach()))
        dy = torch.randn_like(wanted).to(dtype)
        (wanted * dy.double()).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        errors["gradient"].append(_error(_gradient(case, dy), x.grad))
    return errors


def _forward(case: FuzzCase, variant: Variant | None) -> Tensor:
    """By one variant, or by what a server takes: the cases go through all of them in turn."""
    rows, inputs = case.x.shape
    site = FusedSite(rows, inputs, case.slices, case.columns, case.x.device, variant)
    site.fill(case.segments)
    out = torch.full((rows, sum(case.slices)), torch.nan, dtype=case.x.dtype, device=case.x.device)
    return site(case.x, case.weight, case.bias, case.a, case.bt, case.scale, out=out)


def _gradient(case: FuzzCase, dy: Tensor) -> Tensor:
    """Through the operator, as training does; on a CPU that is the reference."""
    from polygraft.kernels.fused.operator import lora_linear
    from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity

    host = ColumnPlan(PlanCapacity(len(case.x), max(case.columns, 1), 16))
    host.fill(case.segments)
    plan = ColumnPlan(host.capacity, case.x.device)
    plan.copy_(host)
    x = case.x.detach().requires_grad_()
    y = lora_linear(x, case.weight, case.bias, case.a, case.bt, case.scale, plan, case.slices)
    (gradient,) = torch.autograd.grad(y, x, dy)
    return gradient


def _error(found: Tensor, wanted: Tensor) -> float:
    error = float((found.double() - wanted).norm() / wanted.norm())
    return error if error < HOPELESS else HOPELESS  # NaN never passes


def check_site(bench: Bench, shape: SiteShape, load: Load, variant: Variant | None = None) -> None:
    """Determinism, graphs and isolation of one bucket of one site."""
    weights = SiteWeights(
        shape, copies=1, pool_rows=load.pool_rows, dtype=bench.dtype, device=bench.device
    )
    case = SiteCase(weights, load)
    site = FusedSite(load.rows, shape.inputs, shape.slices, load.pool_rows, bench.device, variant)
    y = torch.empty(load.rows, shape.outputs, dtype=bench.dtype, device=bench.device)
    copy = weights.copies[0]

    def launch(_: int = 0) -> Tensor:
        return site(case.x, copy.weight, None, copy.a, copy.bt, weights.scale, out=y)

    site.fill(case.segments)
    eager = launch().clone()
    graph = capture(launch, 1, bench.device)
    equal, replays = 0, 2 if bench.rehearsal else REPLAYS
    for _ in range(replays):
        y.fill_(torch.nan)
        graph.run()
        equal += bool(torch.equal(y, eager))
    assert site.config is not None
    where = {"site": shape.name, "load": load.name, "variant": site.config.variant}
    bench.emit("replays", **where, replays=replays, equal=equal, error=case.error(eager))

    # The graph reads the plan that is there now: other adapters need no new one.
    site.fill(case.segments[:1])
    y.fill_(torch.nan)
    graph.run()
    replayed = y.clone()
    bench.emit("refilled", **where, equal=bool(torch.equal(replayed, launch())))
    _check_isolation(bench, case, site, eager, where)


def _check_isolation(
    bench: Bench, case: SiteCase, site: FusedSite, together: Tensor, where: dict[str, str]
) -> None:
    """The first segment's rows: the others' rows, adapters and pools become anything."""
    (row0, rank, _), *_ = case.segments[0].parts
    own, pool = slice(0, case.segments[0].end), slice(row0, row0 + rank)
    copy, scale = case.weights.copies[0], case.weights.scale
    x = torch.full_like(case.x, 3.0)
    x[own] = case.x[own]
    others: list[LoraSegment] = [
        case.segments[0],
        *(replace(s, parts=tuple((r, n, -2.0) for r, n, _ in s.parts)) for s in case.segments[1:]),
    ]
    for name, value in (("neighbours", 0.5), ("inf in neighbours", float("inf"))):
        a, bt = torch.full_like(copy.a, value), torch.full_like(copy.bt, value)
        a[pool], bt[pool] = copy.a[pool], copy.bt[pool]
        site.fill(others)
        found = site(x, copy.weight, None, a, bt, scale)
        bench.emit(
            "isolation", **where, what=name, equal=bool(torch.equal(found[own], together[own]))
        )
    alone = FusedSite(case.segments[0].end, case.shape.inputs, case.shape.slices, 64, x.device)
    alone.fill(case.segments[:1])
    found = alone(case.x[own].contiguous(), copy.weight, None, copy.a, copy.bt, scale)
    difference = float(
        (found.float() - together[own].float()).norm() / together[own].float().norm()
    )
    bench.emit(
        "alone", **where, difference=difference
    )  # another bucket: other bits, not other sums
