"""The two ceilings of this GPU, measured: memory copied a second, and bfloat16 products."""

from __future__ import annotations

from statistics import median

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import seconds_of

COPY_BYTES = 4 << 30
SQUARE = 8192


def run(bench: Bench) -> None:
    """On random data: a product of zeros draws less power and runs faster."""
    size, side = (1 << 20, 64) if bench.rehearsal else (COPY_BYTES, SQUARE)
    bench.emit(
        "ceilings",
        bytes_per_s=2 * size / copy_seconds(size, bench.device),
        flops_per_s=2 * side**3 / product_seconds(side, bench),
    )


def copy_seconds(size: int, device: torch.device) -> float:
    """To copy so many bytes: each is read once and written once."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return median(seconds_of(lambda: target.copy_(source), device) for _ in range(9))


def product_seconds(side: int, bench: Bench) -> float:
    """Of two square matrices."""
    a, b = (torch.randn(side, side, device=bench.device).to(bench.dtype) for _ in range(2))
    return median(seconds_of(lambda: torch.mm(a, b), bench.device) for _ in range(9))
