"""Random mixed steps over a paged cache, with float64 answers made from the sequences."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polygraft.kernels.paged.plan import PagedCapacity, PagedPlan
from polygraft.kernels.paged.tiles import LayerShape
from polygraft.kernels.reference import attention_reference
from polygraft.kernels.segments import SequenceRows

SHAPES = (
    LayerShape(1, 3, 64, 64),
    LayerShape(1, 7, 32, 32),
    LayerShape(2, 1, 24, 20),
    LayerShape(1, 4, 128, 128, window=5),
    LayerShape(1, 16, 16, 16, window=70),
    LayerShape(1, 4, 16, 16, softcap=2.0),
    LayerShape(2, 3, 32, 32, window=24, has_sinks=True),
    LayerShape(1, 2, 192, 128, softcap=30.0, has_sinks=True),
    LayerShape(1, 4, 16, 16, window=100, softcap=5.0, has_sinks=True),
)


@dataclass(slots=True)
class PagedCase:
    """A step over scattered blocks. Cells that no sequence of the step has are NaN."""

    shape: LayerShape
    block_size: int
    q: Tensor  # [T, H, D]
    keys: Tensor  # [Hkv, cells, D]
    values: Tensor  # [Hkv, cells, D_v]
    sinks: Tensor | None
    sequences: list[SequenceRows]
    padding: range

    def plan(self, tile_rows: int) -> PagedPlan:
        """Its plan, with no room to spare."""
        size = self.block_size
        tiles = sum(-(-s.count // tile_rows) for s in self.sequences) + len(self.padding)
        blocks = sum(-(-s.length // size) for s in self.sequences)
        plan = PagedPlan(PagedCapacity(tiles, max(blocks, 1), size, tile_rows))
        plan.fill(self.sequences, padding=self.padding)
        return plan

    @property
    def rule(self) -> dict[str, Any]:
        """How the layer turns a query and its keys into weights."""
        shape = self.shape
        return {
            "scaling": shape.dim**-0.5,
            "window": shape.window,
            "softcap": shape.softcap,
            "sinks": self.sinks,
        }

    def expected(self) -> Tensor:
        """Float64 [T, H, D_v]; rows of padding are zero."""
        shape = self.shape
        out = torch.zeros(len(self.q), shape.kv_heads * shape.group, shape.value_dim).double()
        for rows in self.sequences:
            cells, own = self.cells(rows), slice(rows.start, rows.start + rows.count)
            k, v = self.keys[:, cells], self.values[:, cells]
            out[own] = attention_reference(self.q[own], k, v, **self.rule)
        return out

    def cells(self, rows: SequenceRows) -> Tensor:
        """Of the positions [0, length)."""
        blocks = torch.from_numpy(rows.blocks.astype(np.int64))
        offsets = torch.arange(self.block_size)
        return (blocks[:, None] * self.block_size + offsets).view(-1)[: rows.length]

    def alone(self, index: int) -> PagedCase:
        """One sequence of the step in a step of its own."""
        rows = self.sequences[index]
        own = slice(rows.start, rows.start + rows.count)
        return replace(
            self, q=self.q[own], sequences=[replace(rows, start=0)], padding=range(rows.count, 0)
        )


def random_paged_case(seed: int, dtype: torch.dtype = torch.float32) -> PagedCase:
    """Decodes short and long, whole prompts, later chunks, and rows of padding behind them."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES[seed % len(SHAPES)]
    size = choose.choice((4, 8, 16, 16, 256))
    mix = [_rows_and_length(choose) for _ in range(choose.choice((1, 2, 3, 5)))]
    needed = sum(-(-length // size) for _, length in mix)
    order = np.random.default_rng(seed).permutation(needed + 2).astype(np.int32)
    cells = len(order) * size
    sequences, start, used = [], 0, 0
    for count, length in mix:
        blocks = order[used : (used := used + -(-length // size))]
        sequences.append(SequenceRows(start, count, length, blocks))
        start += count
    padding = range(start, start + choose.choice((0, 0, 3)))

    def normal(*widths: int) -> Tensor:
        return torch.randn(*widths, generator=generator)

    case = PagedCase(
        shape,
        size,
        normal(start + len(padding), shape.kv_heads * shape.group, shape.dim).to(dtype),
        torch.full((shape.kv_heads, cells, shape.dim), torch.nan, dtype=dtype),
        torch.full((shape.kv_heads, cells, shape.value_dim), torch.nan, dtype=dtype),
        normal(shape.kv_heads * shape.group) if shape.has_sinks else None,
        sequences,
        padding,
    )
    for rows in sequences:
        own = case.cells(rows)
        case.keys[:, own] = normal(shape.kv_heads, rows.length, shape.dim).to(dtype)
        case.values[:, own] = normal(shape.kv_heads, rows.length, shape.value_dim).to(dtype)
    return case


def _rows_and_length(choose: random.Random) -> tuple[int, int]:
    before = choose.choice((0, 1, 15, 16, 40, 90))
    kind = choose.choice(("decode", "decode", "chunk"))
    count = 1 if kind == "decode" else choose.choice((2, 13, 20))
    return count, before + count
