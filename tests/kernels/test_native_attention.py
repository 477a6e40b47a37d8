"""The native attention kernel against float64, over scattered blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from polygraft.kernels.native.attention import NativeAttention, NativeAttentionPlan
from polygraft.kernels.reference import attention_reference
from polygraft.kernels.segments import SequenceRows

BLOCK = 16
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# (rows of this step, length so far): decodes short and long, whole prompts, later chunks
MIX = [(1, 1), (1, 130), (20, 20), (13, 77), (5, 16), (1, 64), (65, 65)]


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


SHAPES = [
    Shape(9, 3, 64, 64),
    Shape(4, 4, 20, 12),
    Shape(8, 2, 128, 128, window=5),
    Shape(32, 1, 16, 16, window=70),
    Shape(4, 1, 16, 16, softcap=2.0),
    Shape(6, 2, 32, 32, window=24, sinks=True),
    Shape(16, 8, 192, 128, softcap=30.0, sinks=True),
]


class Case:
    """A cache of random blocks and a step of several sequences."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator).to(dtype)

        self.shape = shape
        needed = sum(-(-length // BLOCK) for _, length in MIX)
        order = np.random.default_rng(0).permutation(needed + 3).astype(np.int32)
        self.keys = random(shape.kv_heads, len(order) * BLOCK, shape.dim)
        self.values = random(shape.kv_heads, len(order) * BLOCK, shape.value_dim)
        self.sinks = torch.randn(shape.heads, generator=generator) if shape.sinks else None
        self.sequences: list[SequenceRows] = []
        start = used = 0
        for count, length in MIX:
            blocks = order[used : (used := used + -(-length // BLOCK))]
            self.sequences.append(SequenceRows(start, count, length, blocks))
            start += count
        self.q = random(start, shape.heads * shape.dim)

    def run(self, q: Tensor | None = None) -> Tensor:
        shape = self.shape
        attention = NativeAttention(
            self.keys,
            self.values,
            heads=shape.heads,
            scaling=shape.dim**-0.5,
            window=shape.window,
            softcap=shape.softcap,
            sinks=self.sinks,
        )
        group = shape.heads // shape.kv_heads
        plan = NativeAttentionPlan(self.sequences, block_size=BLOCK, group=group)
        return attention(plan, self.q if q is None else q).view(-1, shape.heads, shape.value_dim)

    def cells(self, rows: SequenceRows) -> Tensor:
        blocks = torch.from_numpy(rows.blocks.astype(np.int64))
        return (blocks[:, None] * BLOCK + torch.arange(BLOCK)).view(-1)[: rows.length]

    def expected(self, rows: SequenceRows) -> Tensor:
        cells, shape = self.cells(rows), self.shape
        return attention_reference(
            self.q[rows.start : rows.start + rows.count].view(rows.count, shape.heads, -1),
            self.keys[:, cells],
            self.values[:, cells],
            scaling=shape.dim**-0.5,
            window=shape.window,
            softcap=shape.softcap,
            sinks=self.sinks,
        )


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: Shape, dtype: torch.dtype) -> None:
    case = Case(shape, dtype)
    found = case.run()
    for rows in case.sequences:
        error = (found[rows.start : rows.start + rows.count] - case.expected(rows)).abs().max()
        assert error <= BOUNDS[dtype], rows


def test_queries_may_stand_in_wider_rows() -> None:
    case = Case(SHAPES[0], torch.float32)
    wide = torch.cat([case.q, torch.full((len(case.q), 100), float("nan"))], dim=1)
    assert torch.equal(case.run(wide), case.run())


def test_a_stranger_s_nan_is_never_read() -> None:
    case = Case(SHAPES[0], torch.float32)
    clean = case.run()
    used = torch.cat([case.cells(rows) for rows in case.sequences])
    unused = torch.ones(case.keys.shape[1], dtype=torch.bool).index_fill(0, used, False)
    case.keys[:, unused] = float("nan")
    case.values[:, unused] = float("inf")
    assert torch.equal(case.run(), clean)


def test_a_row_with_nan_ends_alone() -> None:
    case = Case(SHAPES[0], torch.float32)
    clean, broken = case.run(), case.sequences[1]
    case.keys[:, case.cells(broken)[3]] = float("nan")
    found = case.run()
    assert found[broken.start].isnan().all()
    others = torch.ones(len(found), dtype=torch.bool)
    others[broken.start] = False
    assert torch.equal(found[others], clean[others])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    case = Case(SHAPES[0], torch.bfloat16)
    together = case.run()
    alone = Case(SHAPES[0], torch.bfloat16)
    target = alone.sequences[1]
    alone.q = case.q[target.start : target.start + 1].clone()
    alone.sequences = [SequenceRows(0, 1, target.length, target.blocks)]
    assert torch.equal(alone.run()[0], together[target.start])
