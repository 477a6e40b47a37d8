"""The linear layers of one decode step of Llama-3-8B, 32 layers in one graph, each with its own
weights, in the data's own order: what a token costs before attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.fused import FusedSite
from benchmarks.gpu.sites import LLAMA_3_8B, Load, SiteShape, SiteWeights
from benchmarks.gpu.timing import Replay, capture, interleaved

LAYERS = 32
LOADS = (Load(1, 1), Load(8, 4), Load(32, 8), Load(32, 32), Load(128, 64))
REHEARSAL_SITES = (
    SiteShape("qkv", 64, (64, 32, 32)),
    SiteShape("o", 64, (64,)),
    SiteShape("gate_up", 64, (96, 96)),
    SiteShape("down", 96, (64,)),
)
Linear = Callable[[int, Tensor], Tensor]  # layer and input to output


def run(bench: Bench) -> None:
    """Base by cuBLAS, base by our kernel, and all adapters by our kernel, in turns."""
    shapes = REHEARSAL_SITES if bench.rehearsal else LLAMA_3_8B
    layers = 2 if bench.rehearsal else LAYERS
    loads = (Load(4, 2),) if bench.rehearsal else LOADS
    pool_rows = max(load.pool_rows for load in loads)
    sites = [
        SiteWeights(
            shape, copies=layers, pool_rows=pool_rows, dtype=bench.dtype, device=bench.device
        )
        for shape in shapes
    ]
    for load in loads:
        if bench.seconds_left < 5:
            bench.emit("left_out", load=load.name, why="no time left")
            continue
        measure(bench, sites, layers, load)


def measure(bench: Bench, sites: list[SiteWeights], layers: int, load: Load) -> None:
    """One load."""
    x = torch.randn(load.rows, sites[0].shape.inputs, device=bench.device).to(bench.dtype)
    linears = {
        "cublas": [_cublas(site, load) for site in sites],
        "ours base": [_fused(site, load, with_adapters=False) for site in sites],
        "ours": [_fused(site, load, with_adapters=True) for site in sites],
    }
    replays: dict[str, Replay] = {}
    with torch.inference_mode():
        for name, own in linears.items():
            step = _step(own, layers, x)
            replays[name] = capture(step, 1, bench.device)
        rounds, warm_up = (2, 0) if bench.rehearsal else (30, 5)
        times = interleaved(replays, bench.device, rounds=rounds, warm_up=warm_up)
    bench.emit(
        "step",
        load=load.name,
        rows=load.rows,
        adapters=load.adapters,
        layers=layers,
        us={name: found.to_json() for name, found in times.items()},
        tokens_per_s={name: 1e6 * load.rows / found.median for name, found in times.items()},
        overhead=times["ours"].median / times["cublas"].median - 1,
    )


def _step(linears: list[Linear], layers: int, x: Tensor) -> Callable[[int], Tensor]:
    """All layers; the queries stand in for what attention would make of them."""
    qkv, o, gate_up, down = linears

    def run(_: int) -> Tensor:
        hidden = x
        for layer in range(layers):
            normed = rms_norm(hidden, hidden.shape[-1:])
            hidden = hidden + o(layer, qkv(layer, normed)[:, : x.shape[1]].contiguous())
            gate, up = gate_up(layer, rms_norm(hidden, hidden.shape[-1:])).chunk(2, dim=-1)
            hidden = hidden + down(layer, silu(gate) * up)
        return hidden

    return run


def _cublas(site: SiteWeights, load: Load) -> Linear:
    return lambda layer, x: torch.mm(x, site.copies[layer].weight.t())


def _fused(site: SiteWeights, load: Load, *, with_adapters: bool) -> Linear:
    shape = site.shape
    own = FusedSite(load.rows, shape.inputs, shape.slices, load.pool_rows, site.device)
    own.fill(load.segments() if with_adapters else [])

    def linear(layer: int, x: Tensor) -> Tensor:
        copy = site.copies[layer]
        return own(x, copy.weight, None, copy.a, copy.bt, site.scale)

    return linear
