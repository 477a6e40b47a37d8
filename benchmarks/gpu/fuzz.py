"""Random steps for the fused kernel with an answer in float64, made without a plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.kernels.segments import LoraSegment

POOL_ROWS = 1024
RANKS = (1, 2, 3, 7, 8, 15, 16, 16, 17, 33, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Shape:
    """Cases of one shape and one range of rows share what is compiled."""

    inputs: int
    slices: tuple[int, ...]
    rows: tuple[int, int]  # from, to
    ranks: tuple[int, ...] = RANKS


SHAPES = tuple(
    Shape(inputs, slices, rows)
    for inputs, slices in ((256, (192,)), (512, (128, 64, 64)), (136, (66, 65)))
    for rows in ((1, 16), (17, 32), (33, 64), (65, 512))
)
REHEARSAL_SHAPES = (Shape(72, (32, 16, 16), (1, 16), (3, 16, 17)),)


@dataclass(slots=True)
class FuzzCase:
    """Arguments of one linear. Rows of the pools that no adapter owns are NaN."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: Tensor  # [P, Z, K]
    bt: Tensor  # [P, N]
    scale: Tensor  # [P, Z]
    slices: tuple[int, ...]
    segments: list[LoraSegment]

    @property
    def columns(self) -> int:
        """Packed, each adapter's rank rounded up to 16."""
        return sum(-(-rank // 16) * 16 for s in self.segments for _, rank, _ in s.parts)

    def expected(self, x: Tensor) -> Tensor:
        """Float64 [M, N] for float64 x, differentiable in it."""
        y = x @ self.weight.double().t()
        if self.bias is not None:
            y = y + self.bias.double()
        updates = torch.zeros_like(y)
        for segment in self.segments:
            rows = slice(segment.start, segment.end)
            for row0, rank, weight in segment.parts:
                pool, low = slice(row0, row0 + rank), 0
                for z, width in enumerate(self.slices):
                    scale = self.scale[pool, z].double() * weight
                    h = (x[rows] @ self.a[pool, z].double().t()) * scale
                    added = h @ self.bt[pool, low : low + width].double()
                    updates[rows, low : low + width] += added
                    low += width
        return y + updates


def make_case(seed: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> FuzzCase:
    """0 to 16 adapters of mixed ranks, base-only rows, segments of no rows, one adapter in two
    segments, weighted compositions, sizes that are no multiples of a tile."""
    choose = random.Random(seed)
    generator = torch.Generator(device).manual_seed(seed)
    num_rows, outputs = choose.randint(*shape.rows), sum(shape.slices)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    adapters = _adapters(choose, shape.ranks)
    sizes = ((len(shape.slices), shape.inputs), (outputs,), (len(shape.slices),))
    a, bt, scale = (torch.full((POOL_ROWS, *size), torch.nan, device=device) for size in sizes)
    for row0, rank in adapters:
        rows = slice(row0, row0 + rank)
        a[rows] = normal(rank, *sizes[0]) / shape.inputs**0.5
        bt[rows] = normal(rank, outputs) / rank**0.5
        scale[rows] = normal(rank, *sizes[2]).abs() + 0.5
    return FuzzCase(
        x=normal(num_rows, shape.inputs).to(dtype),
        weight=(normal(outputs, shape.inputs) / shape.inputs**0.5).to(dtype),
        bias=normal(outputs).to(dtype) if choose.random() < 0.4 else None,
        a=a.to(dtype),
        bt=bt.to(dtype),
        scale=scale,
        slices=shape.slices,
        segments=_segments(choose, num_rows, adapters),
    )


def _adapters(choose: random.Random, ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(first pool row, rank) of each, with dead rows between them."""
    found, row = [], choose.randint(0, 3)
    for _ in range(choose.choice((0, 1, 2, 4, 8, 16))):
        rank = choose.choice(ranks)
        if row + rank > POOL_ROWS:
            break
        found.append((row, rank))
        row += rank + choose.randint(1, 3)
    return found


def _segments(
    choose: random.Random, num_rows: int, adapters: list[tuple[int, int]]
) -> list[LoraSegment]:
    segments, start = [], 0
    while start < num_rows and adapters:
        end = min(start + choose.choice((0, 1, 1, 2, 5, 20, 100)), num_rows)
        parts = choose.sample(adapters, min(len(adapters), choose.choice((0, 1, 1, 1, 1, 2, 3))))
        weighted = tuple((row0, rank, choose.choice((1.0, 0.5, -2.0))) for row0, rank in parts)
        segments.append(LoraSegment(weighted, start, end))
        start = end + choose.choice((0, 0, 0, 3))
    return segments
