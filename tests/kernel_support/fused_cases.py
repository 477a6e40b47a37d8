"""Random mixed batches for the fused LoRA linear, with a float64 answer made from the segments."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity
from polygraft.kernels.segments import LoraSegment

POOL_ROWS = 320
RANKS = (1, 2, 3, 7, 8, 15, 16, 16, 17, 33)
Part = tuple[int, int, float]


@dataclass(slots=True)
class FusedCase:
    """Arguments of one fused linear. Rows of the pools that no adapter owns are NaN."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: Tensor  # [P, Z, K]
    bt: Tensor  # [P, N]
    scale: Tensor  # [P, Z]
    slices: tuple[int, ...]
    segments: list[LoraSegment]

    def plan(self, block_rows: int, max_rows: int | None = None) -> ColumnPlan:
        """Its plan, with no room to spare for columns."""
        columns = sum(-(-rank // 16) * 16 for s in self.segments for _, rank, _ in s.parts)
        rows = max_rows or len(self.x)
        plan = ColumnPlan(PlanCapacity(rows, max(columns, 1), block_rows))
        plan.fill(self.segments)
        return plan

    def expected(self) -> Tensor:
        """Float64 [M, N], from the segments and the pools, without a plan."""
        y = self.x.double() @ self.weight.double().t()
        if self.bias is not None:
            y = y + self.bias.double()
        for segment in self.segments:
            rows = slice(segment.start, segment.end)
            for row0, rank, weight in segment.parts:
                pool = slice(row0, row0 + rank)
                lo = 0
                for z, width in enumerate(self.slices):
                    h = self.x[rows].double() @ self.a[pool, z].double().t()
                    h = h * self.scale[pool, z].double() * weight
                    y[rows, lo : lo + width] += h @ self.bt[pool, lo : lo + width].double()
                    lo += width
        return y

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Float64 [M, K]: the gradient of sum(y * dy)."""
        leaf = self.x.double().requires_grad_()
        case = FusedCase(
            leaf, self.weight, None, self.a, self.bt, self.scale, self.slices, self.segments
        )
        (case.expected() * dy.double()).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad


def random_case(
    seed: int,
    dtype: torch.dtype = torch.float32,
    *,
    max_rows: int = 50,
    ranks: tuple[int, ...] = RANKS,
) -> FusedCase:
    """Sizes that are mostly no multiples, 0 to 16 adapters of mixed ranks, base-only rows, segments
    of no rows, one adapter in two segments, weighted compositions."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_rows = choose.choice((1, 2, 3, 16, 17, 33, choose.randint(1, max_rows)))
    inputs = choose.choice((16, 24, 64, 72, 96, 130))
    slices = choose.choice(((48,), (64, 64), (40, 24, 24), (96,), (64, 16, 16), (33, 65)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pool = tuple(
        torch.full(shape, torch.nan)
        for shape in (
            (POOL_ROWS, len(slices), inputs),
            (POOL_ROWS, sum(slices)),
            (POOL_ROWS, len(slices)),
        )
    )
    adapters = _adapters(choose, ranks)
    for row0, rank in adapters:
        rows = slice(row0, row0 + rank)
        pool[0][rows] = normal(rank, len(slices), inputs) / inputs**0.5
        pool[1][rows] = normal(rank, sum(slices)) / rank**0.5
        pool[2][rows] = torch.rand(rank, len(slices), generator=generator) + 0.5
    return FusedCase(
        x=normal(num_rows, inputs).to(dtype),
        weight=(normal(sum(slices), inputs) / inputs**0.5).to(dtype),
        bias=normal(sum(slices)).to(dtype) if choose.random() < 0.4 else None,
        a=pool[0].to(dtype),
        bt=pool[1].to(dtype),
        scale=pool[2],
        slices=slices,
        segments=_segments(choose, num_rows, adapters),
    )


def _adapters(choose: random.Random, ranks: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first pool row, rank) of up to 16 adapters with dead rows between them."""
    found, row = [], choose.randint(0, 3)
    for _ in range(choose.choice((0, 1, 2, 4, 8, 16))):
        rank = choose.choice(ranks)
        if row + rank > POOL_ROWS - 4:
            break
        found.append((row, rank))
        row += rank + choose.randint(1, 3)
    return found


def _segments(
    choose: random.Random, num_rows: int, adapters: list[tuple[int, int]]
) -> list[LoraSegment]:
    segments, start = [], 0
    while start < num_rows and adapters:
        length = choose.choice((0, 1, 1, 2, 5, 20))
        end = min(start + length, num_rows)
        parts = choose.sample(adapters, min(len(adapters), choose.choice((0, 1, 1, 1, 1, 2, 3))))
        weighted = tuple((row0, rank, choose.choice((1.0, 0.5, -2.0))) for row0, rank in parts)
        segments.append(LoraSegment(weighted, start, end))
        start = end + choose.choice((0, 0, 0, 3))
    return segments
