"""Linear sites of Llama-3-8B with random weights, and mixed batches of adapters for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polygraft.kernels.segments import LoraSegment

HOPELESS = 1e9  # stands for an error that is no number, which JSON cannot say
COLUMNS = 16  # an adapter's pool rows start at multiples of this


@dataclass(frozen=True, slots=True)
class SiteShape:
    """Projections of one input, concatenated: [sum(slices), inputs]."""

    name: str
    inputs: int
    slices: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Width of the result."""
        return sum(self.slices)


LLAMA_3_8B = (
    SiteShape("qkv", 4096, (4096, 1024, 1024)),
    SiteShape("o", 4096, (4096,)),
    SiteShape("gate_up", 4096, (14336, 14336)),
    SiteShape("down", 14336, (4096,)),
)
# The smallest that every variant takes: slices of one width where there are several.
REHEARSAL = (SiteShape("qkv", 64, (64, 32, 32)), SiteShape("o", 64, (64,)))


@dataclass(frozen=True, slots=True)
class Load:
    """A step: rows shared evenly by `adapters`, whose ranks are taken from `ranks` in turn."""

    rows: int
    adapters: int
    ranks: tuple[int, ...] = (16,)
    base_rows: int = 0  # of the rows, at the end: base only

    @property
    def name(self) -> str:
        """For tables: M 32, D 8, r 16."""
        ranks = "/".join(map(str, self.ranks))
        base = f", {self.base_rows} base" if self.base_rows else ""
        return f"M {self.rows}, D {self.adapters}, r {ranks}{base}"

    def rank_rows(self) -> list[tuple[int, int]]:
        """(first pool row, rank) of each adapter."""
        found, row = [], 0
        for index in range(self.adapters):
            rank = self.ranks[index % len(self.ranks)]
            found.append((row, rank))
            row += -(-rank // COLUMNS) * COLUMNS
        return found

    def segments(self) -> list[LoraSegment]:
        """One of each adapter, in the order of the rows."""
        rows = self.rows - self.base_rows
        bounds = [index * rows // max(self.adapters, 1) for index in range(self.adapters + 1)]
        return [
            LoraSegment(((row0, rank, 1.0),), bounds[index], bounds[index + 1])
            for index, (row0, rank) in enumerate(self.rank_rows())
        ]

    @property
    def pool_rows(self) -> int:
        """Rows that the adapters take together."""
        return sum(-(-rank // COLUMNS) * COLUMNS for _, rank in self.rank_rows())


@dataclass(frozen=True, slots=True)
class Copy:
    """One set of weights; several of them are used in turn, so that none stays in L2."""

    weight: Tensor  # [N, K]
    a: Tensor  # [P, Z, K]
    bt: Tensor  # [P, N]


class SiteWeights:
    """`copies` sets of random weights of a site, and pools of `pool_rows` rows beside each."""

    def __init__(
        self,
        shape: SiteShape,
        *,
        copies: int,
        pool_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.shape = shape
        self.dtype, self.device = dtype, device
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int, std: float) -> Tensor:
            made = torch.empty(size, dtype=dtype, device=device)
            return made.normal_(std=std, generator=generator)

        width = shape.inputs**-0.5
        self.copies = [
            Copy(
                normal(shape.outputs, shape.inputs, std=width),
                normal(pool_rows, len(shape.slices), shape.inputs, std=width),
                normal(pool_rows, shape.outputs, std=0.25),
            )
            for _ in range(copies)
        ]
        self.scale = torch.full((pool_rows, len(shape.slices)), 2.0, device=device)


class SiteCase:
    """One site and one load: what a variant computes, and what it is held to."""

    def __init__(self, weights: SiteWeights, load: Load, seed: int = 1) -> None:
        self.weights, self.load, self.shape = weights, load, weights.shape
        generator = torch.Generator(weights.device).manual_seed(seed)
        self.x = torch.empty(
            load.rows, self.shape.inputs, dtype=weights.dtype, device=weights.device
        ).normal_(generator=generator)
        self.segments = load.segments()

    def slices(self) -> Iterator[tuple[int, int, int]]:
        """(z, first column, end) of each projection."""
        low = 0
        for z, width in enumerate(self.shape.slices):
            yield z, low, low + width
            low += width

    @cached_property
    def expected(self) -> Tensor:
        """Of the first copy, [M, N] in float32, from the segments alone; products in full float32,
        as torch's default is."""
        copy = self.weights.copies[0]
        x = self.x.float()
        y = x @ copy.weight.float().t()
        for segment in self.segments:
            rows = slice(segment.start, segment.end)
            for row0, rank, weight in segment.parts:
                pool = slice(row0, row0 + rank)
                for z, low, high in self.slices():
                    scale = self.weights.scale[pool, z] * weight
                    h = (x[rows] @ copy.a[pool, z].float().t()) * scale
                    y[rows, low:high] += h @ copy.bt[pool, low:high].float()
        return y

    def error(self, y: Tensor) -> float:
        """Norm of the difference to `expected` over its norm; HOPELESS if y is not finite."""
        error = float((y.float() - self.expected).norm() / self.expected.norm())
        return error if error < HOPELESS else HOPELESS

    def bytes_moved(self, *, with_adapters: bool) -> int:
        """The fewest bytes of a launch: weights, X and Y once, A and B of the adapters in use."""
        copy, size = self.weights.copies[0], self.x.element_size()
        elements = copy.weight.numel() + self.x.numel() + self.load.rows * self.shape.outputs
        if with_adapters:
            ranks = sum(rank for _, rank in self.load.rank_rows())
            per_column = len(self.shape.slices) * self.shape.inputs + self.shape.outputs
            elements += ranks * per_column
        return elements * size

    def flops(self) -> int:
        """Of the base product."""
        return 2 * self.load.rows * self.shape.inputs * self.shape.outputs
