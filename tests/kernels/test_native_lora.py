"""The native LoRA kernel against float64, for mixed batches."""

from __future__ import annotations

import pytest
import torch

from polygraft.kernels.native.lora import NativeLora, NativeLoraPlan
from polygraft.kernels.rank_pool import SitePool, SiteShape
from polygraft.kernels.segments import LoraSegment

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 1e-2}  # of the largest value
CPU = torch.device("cpu")
SHAPES = [
    SiteShape(72, (72, 24, 24)),
    SiteShape(576, (576, 192, 192)),
    SiteShape(24, (7,)),
    SiteShape(130, (65, 65)),
]
SEGMENTS = [
    LoraSegment(((0, 16, 1.0),), 0, 1),
    LoraSegment(((16, 16, 1.0), (32, 8, -0.5)), 1, 20),
    LoraSegment(((48, 16, 2.0),), 25, 29),
    LoraSegment(((0, 16, 1.0),), 29, 64),
]


def filled_pool(shape: SiteShape, dtype: torch.dtype) -> SitePool:
    generator = torch.Generator().manual_seed(0)
    pool = SitePool(shape, 64, dtype=dtype, device=CPU)
    pool.a.copy_(torch.randn(pool.a.shape, generator=generator))
    pool.bt.copy_(torch.randn(pool.bt.shape, generator=generator))
    pool.scale.copy_(torch.rand(pool.scale.shape, generator=generator))
    pool.scale[5:16] = 0.0  # the padding of a rank of 5
    return pool


def expected_output(
    pool: SitePool, x: torch.Tensor, y: torch.Tensor, segments: list[LoraSegment]
) -> torch.Tensor:
    out = y.double()
    for segment in segments:
        rows = slice(segment.start, segment.end)
        for row0, count, weight in segment.parts:
            for z in range(len(pool.shape.slices)):
                lo, hi = pool.shape.bounds(z)
                used = [r for r in range(row0, row0 + count) if pool.scale[r, z] != 0]
                h = x[rows].double() @ pool.a[used, z].double().t()
                h = h * pool.scale[used, z].double() * weight
                out[rows, lo:hi] += h @ pool.bt[used, lo:hi].double()
    return out


def inputs(shape: SiteShape, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, shape.in_features, generator=generator).to(dtype)
    return x, torch.randn(64, shape.out_features, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: SiteShape, dtype: torch.dtype) -> None:
    pool, (x, y) = filled_pool(shape, dtype), inputs(shape, dtype)
    expected = expected_output(pool, x, y, SEGMENTS)
    NativeLora(pool).add_(NativeLoraPlan(SEGMENTS), x, y)
    assert (y - expected).abs().max() <= BOUNDS[dtype] * expected.abs().max()


def test_rows_without_an_adapter_are_not_touched() -> None:
    pool, (x, y) = filled_pool(SHAPES[0], torch.float32), inputs(SHAPES[0], torch.float32)
    before = y.clone()
    NativeLora(pool).add_(NativeLoraPlan(SEGMENTS), x, y)
    assert torch.equal(y[20:25], before[20:25])


def test_rows_of_scale_zero_are_never_read() -> None:
    pool, (x, y) = filled_pool(SHAPES[0], torch.float32), inputs(SHAPES[0], torch.float32)
    expected = expected_output(pool, x, y, SEGMENTS)
    pool.a[5:16] = float("nan")
    pool.bt[5:16] = float("inf")
    NativeLora(pool).add_(NativeLoraPlan(SEGMENTS), x, y)
    assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_neighbour_s_infinity_stays_with_it() -> None:
    pool, (x, y) = filled_pool(SHAPES[0], torch.float32), inputs(SHAPES[0], torch.float32)
    clean = y.clone()
    NativeLora(pool).add_(NativeLoraPlan(SEGMENTS), x, clean)
    pool.bt[48:64] = float("inf")
    NativeLora(pool).add_(NativeLoraPlan(SEGMENTS), x, y)
    assert not y[25:29].isfinite().any()
    others = [row for row in range(64) if not 25 <= row < 29]
    assert torch.equal(y[others], clean[others])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    pool, (x, y) = filled_pool(SHAPES[1], torch.bfloat16), inputs(SHAPES[1], torch.bfloat16)
    alone_x, alone_y = x[7:8].clone(), y[7:8].clone()
    NativeLora(pool).add_(NativeLoraPlan(SEGMENTS), x, y)
    NativeLora(pool).add_(NativeLoraPlan([LoraSegment(SEGMENTS[1].parts, 0, 1)]), alone_x, alone_y)
    assert torch.equal(alone_y[0], y[7])
