"""Ways to add the low-rank updates of several adapters to Y on a CPU, on equal segments of rows.

Each makes what a server would keep between steps, so that only a step's own work is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from polygraft.kernels.grouped import GroupedSegments, Part, RankStack, Segment
from polygraft.kernels.linear import PackedLinear
from polygraft.kernels.native.lora import NativeLora, NativeLoraPlan
from polygraft.kernels.rank_pool import SitePool, SiteShape
from polygraft.kernels.reference import lora_linear_reference
from polygraft.kernels.segments import LoraSegment

Add = Callable[[Tensor], object]
"""Adds in place to y [rows, outputs]."""

BASE = "base product, packed"  # for comparison; no LoRA
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class LoraCase:
    """A step in which `adapters` segments of rows of nearly one length have an adapter each."""

    x: Tensor  # [rows, inputs]
    slices: tuple[int, ...]
    a: list[list[Tensor]]  # by adapter and slice: [rank, inputs]
    b: list[list[Tensor]]  # [width, rank]
    scaling: float
    bounds: list[int]  # of the segments
    pool: SitePool

    @classmethod
    def make(
        cls,
        inputs: int,
        slices: tuple[int, ...],
        rank: int,
        rows: int,
        adapters: int,
        *,
        dtype: torch.dtype,
        seed: int,
    ) -> Self:
        """Random x, A and B."""
        torch.manual_seed(seed)
        a = [[(torch.randn(rank, inputs) / inputs**0.5).to(dtype) for _ in slices]
             for _ in range(adapters)]  # fmt: skip
        b = [[torch.randn(width, rank).to(dtype) for width in slices] for _ in range(adapters)]
        pool = SitePool(SiteShape(inputs, slices), adapters * rank, dtype=dtype, device=CPU)
        for g in range(adapters):
            for z in range(len(slices)):
                pool.write(g * rank, z, a[g][z], b[g][z], 2.0)
        bounds = [g * rows // adapters for g in range(adapters + 1)]
        return cls(torch.randn(rows, inputs).to(dtype), slices, a, b, 2.0, bounds, pool)

    @property
    def rank(self) -> int:
        """Of every adapter."""
        return self.a[0][0].shape[0]

    def segments(self) -> list[tuple[int, int, int]]:
        """(adapter, first row, end)."""
        return [(g, lo, hi) for g, (lo, hi) in enumerate(zip(self.bounds, self.bounds[1:]))]  # noqa: B905

    def columns(self) -> list[tuple[int, int]]:
        """[low, high) of each slice."""
        ends = [sum(self.slices[: z + 1]) for z in range(len(self.slices))]
        return [(end - width, end) for end, width in zip(ends, self.slices, strict=True)]

    def expected(self) -> Tensor:
        """The updates alone in float64, by the definition."""
        y = torch.zeros(len(self.x), sum(self.slices), dtype=torch.float64)
        for z, (low, high) in enumerate(self.columns()):
            zero = torch.zeros(high - low, self.x.shape[1])
            adapters = [(lo, hi, self.a[g][z], self.b[g][z], self.scaling)
                        for g, lo, hi in self.segments()]  # fmt: skip
            y[:, low:high] = lora_linear_reference(self.x, zero, None, adapters)
        return y


class _Groups:
    """Rows by group, each padded to the longest; no index where all are of one length."""

    def __init__(self, case: LoraCase) -> None:
        lengths = [hi - lo for _, lo, hi in case.segments()]
        self.shape = (len(lengths), max(lengths))
        self.is_even = len(set(lengths)) == 1
        rows, inverse, pad = [], [], torch.zeros(self.shape, dtype=torch.int64)
        for g, lo, hi in case.segments():
            rows += list(range(lo, hi))
            inverse += [g * self.shape[1] + j for j in range(hi - lo)]
            pad[g, : hi - lo] = torch.arange(lo, hi)
        self.rows, self.inverse, self.pad = torch.tensor(rows), torch.tensor(inverse), pad.view(-1)

    def gather(self, x: Tensor) -> Tensor:
        """[rows, n] to [groups, longest, n]."""
        taken = x if self.is_even else x.index_select(0, self.pad)
        return taken.view(*self.shape, -1)

    def scatter(self, y: Tensor, update: Tensor) -> None:
        """Add [groups, longest, n] to y [rows, n]."""
        if self.is_even:
            y.view(*self.shape, -1).add_(update)
        else:
            y.index_add_(0, self.rows, update.flatten(0, 1).index_select(0, self.inverse))


def native(case: LoraCase) -> Add:
    """The engine's own: one call of C++ that reads the pool; its plan is made once per step for
    all sites, so it is not timed."""
    kernel, rank = NativeLora(case.pool), case.rank
    plan = NativeLoraPlan(
        [LoraSegment(((g * rank, rank, 1.0),), lo, hi) for g, lo, hi in case.segments()]
    )
    return lambda y: kernel.add_(plan, case.x, y)


def stacks(case: LoraCase) -> Add:
    """The engine's own where C++ cannot run: stacks that change by one adapter."""
    stack = RankStack([case.pool], case.rank)
    slots = stack.place({g: (Part(g * case.rank, case.rank),) for g, _, _ in case.segments()})
    step = GroupedSegments(stack, [Segment(slots[g], lo, hi) for g, lo, hi in case.segments()], CPU)
    return lambda y: step.add_(0, case.x, y)


def two_bmm_per_slice(case: LoraCase) -> Add:
    """2Z grouped products."""
    groups = _Groups(case)
    a = [torch.stack([own[z] for own in case.a]).transpose(1, 2) for z in range(len(case.slices))]
    bt = [torch.stack([own[z].t() for own in case.b]) for z in range(len(case.slices))]

    def add(y: Tensor) -> None:
        x = groups.gather(case.x)
        for z, (low, high) in enumerate(case.columns()):
            update = torch.bmm(torch.bmm(x, a[z]).mul_(case.scaling), bt[z])
            if groups.is_even:
                y.view(*groups.shape, -1)[..., low:high].add_(update)
            else:
                groups.scatter(y[:, low:high], update)

    return add


def one_shrink_many_expands(case: LoraCase) -> Add:
    """1 + Z grouped products: one shrink for all slices."""
    groups, rank = _Groups(case), case.rank
    a = torch.stack([torch.cat(own) for own in case.a]).transpose(1, 2)
    bt = [torch.stack([own[z].t() for own in case.b]) for z in range(len(case.slices))]

    def add(y: Tensor) -> None:
        s = torch.bmm(groups.gather(case.x), a).mul_(case.scaling)
        for z, (low, high) in enumerate(case.columns()):
            update = torch.bmm(s[..., z * rank : (z + 1) * rank], bt[z])
            if groups.is_even:
                y.view(*groups.shape, -1)[..., low:high].add_(update)
            else:
                groups.scatter(y[:, low:high], update)

    return add


def two_cached_bmm(case: LoraCase) -> Add:
    """2 grouped products: B block-diagonal over the slices, kept for this set of adapters."""
    groups, rank = _Groups(case), case.rank
    a = torch.stack([torch.cat(own) for own in case.a]).transpose(1, 2)
    b = torch.zeros(len(case.b), rank * len(case.slices), sum(case.slices), dtype=case.x.dtype)
    for g, own in enumerate(case.b):
        for z, (low, high) in enumerate(case.columns()):
            b[g, z * rank : (z + 1) * rank, low:high] = own[z].t()

    def add(y: Tensor) -> None:
        s = torch.bmm(groups.gather(case.x), a).mul_(case.scaling)
        if groups.is_even:
            y.view(*groups.shape, -1).baddbmm_(s, b)
        else:
            groups.scatter(y, torch.bmm(s, b))

    return add


def loop(case: LoraCase) -> Add:
    """Two products for each segment and slice."""
    columns = case.columns()

    def add(y: Tensor) -> None:
        for g, lo, hi in case.segments():
            for z, (low, high) in enumerate(columns):
                s = torch.mm(case.x[lo:hi], case.a[g][z].t())
                y[lo:hi, low:high].addmm_(s, case.b[g][z].t(), alpha=case.scaling)

    return add


def packed_and_masked(case: LoraCase) -> Add:
    """Every row times the columns of every adapter; what is not its own is set to zero."""
    count, rank = len(case.slices), case.rank
    a = torch.cat([torch.cat(own) for own in case.a]).t()
    b = torch.zeros(len(case.b) * count * rank, sum(case.slices), dtype=case.x.dtype)
    mask = torch.zeros(len(case.x), len(b), dtype=case.x.dtype)
    for g, lo, hi in case.segments():
        first = g * count * rank
        mask[lo:hi, first : first + count * rank] = case.scaling
        for z, (low, high) in enumerate(case.columns()):
            rows = slice(first + z * rank, first + (z + 1) * rank)
            b[rows, low:high] = case.b[g][z].t()
    return lambda y: y.addmm_(torch.mm(case.x, a).mul_(mask), b)


def gather_per_row(case: LoraCase) -> Add:
    """A and B gathered for each row, then two products of one row."""
    row_adapter = torch.cat([torch.full((hi - lo,), g) for g, lo, hi in case.segments()])
    a = [torch.stack([own[z].t() for own in case.a]) for z in range(len(case.slices))]
    bt = [torch.stack([own[z].t() for own in case.b]) for z in range(len(case.slices))]

    def add(y: Tensor) -> None:
        for z, (low, high) in enumerate(case.columns()):
            s = torch.bmm(case.x.unsqueeze(1), a[z].index_select(0, row_adapter)).mul_(case.scaling)
            y[:, low:high] += torch.bmm(s, bt[z].index_select(0, row_adapter)).squeeze(1)

    return add


def base_product(case: LoraCase) -> Add:
    """The site's own linear layer as the engine computes it."""
    weight = torch.randn(sum(case.slices), case.x.shape[1]).to(case.x.dtype)
    linear = PackedLinear(weight, None, pack=True)
    return lambda y: linear(case.x)


WAYS: dict[str, Callable[[LoraCase], Add]] = {
    "native": native,
    "stacks": stacks,
    "2Z bmm": two_bmm_per_slice,
    "1 + Z bmm": one_shrink_many_expands,
    "2 cached bmm": two_cached_bmm,
    "loop over segments": loop,
    "packed and masked": packed_and_masked,
    "gather per row": gather_per_row,
    BASE: base_product,
}
