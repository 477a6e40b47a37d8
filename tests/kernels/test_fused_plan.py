"""The plan of packed rank columns, and the torch twin of the kernel that reads it."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_support.fused_cases import random_case
from tolerances import relative_error

from polygraft.kernels.fused.plan import COLUMN_ALIGNMENT, ColumnPlan, PlanCapacity
from polygraft.kernels.fused.reference import lora_linear, lora_linear_input_gradient
from polygraft.kernels.segments import LoraSegment

CAPACITY = PlanCapacity(rows=40, columns=128, block_rows=16)
SEGMENTS = [
    LoraSegment(((100, 5, 1.0),), 0, 3),
    LoraSegment(((7, 20, 0.5), (50, 16, -1.0)), 3, 18),
    LoraSegment(((100, 5, 1.0),), 36, 40),
]


def filled(segments: list[LoraSegment], capacity: PlanCapacity = CAPACITY) -> ColumnPlan:
    plan = ColumnPlan(capacity)
    plan.fill(segments)
    return plan


def test_columns_are_packed_in_the_order_of_the_rows_and_padded() -> None:
    plan = filled(SEGMENTS)
    padding = [-1] * 11
    expected = [*range(100, 105), *padding, *range(7, 27), *[-1] * 12, *range(50, 66)]
    assert plan.column_rows.tolist()[:80] == [*expected, *range(100, 105), *padding]
    assert plan.column_weights.tolist()[:80] == [1.0] * 16 + [0.5] * 32 + [-1.0] * 16 + [1.0] * 16
    rows = [[0, 16]] * 3 + [[16, 64]] * 15 + [[0, 0]] * 18 + [[64, 80]] * 4 + [[0, 0]] * 8
    assert plan.row_columns.tolist() == rows
    assert plan.tile_columns.tolist() == [[0, 64], [16, 64], [64, 80]]
    assert plan.widest_tile == 64


def test_a_plan_without_segments_has_no_columns() -> None:
    plan = filled(SEGMENTS)
    plan.fill([LoraSegment((), 0, 5), LoraSegment(((3, 4, 1.0),), 6, 6)])
    assert not plan.row_columns.any()
    assert not plan.tile_columns.any()
    assert plan.widest_tile == 0


def test_the_columns_of_a_tile_cover_those_of_its_rows_and_begin_aligned() -> None:
    for seed in range(200):
        plan = random_case(seed).plan(block_rows=16)
        for tile, rows in zip(plan.tile_columns, plan.row_columns.view(-1, 16, 2), strict=True):
            used = rows[rows[:, 1] > rows[:, 0]]
            covered = [used[:, 0].min(), used[:, 1].max()] if len(used) else [0, 0]
            assert tile.tolist() == covered
            # Every column belongs to some row of the tile: nothing is multiplied for nobody.
            needed = {c for lo, hi in used.tolist() for c in range(lo, hi)}
            assert needed == set(range(*tile.tolist()))
            assert not (used[:, 0] % COLUMN_ALIGNMENT).any()


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([LoraSegment(((0, 8, 1.0),), 0, 41)], "from row 0 to 41, but the plan holds rows 0 to 40"),
        ([LoraSegment(((0, 129, 1.0),), 0, 1)], "144 rank columns .* the plan holds 128"),
        ([LoraSegment(((0, 8, 1.0),), 5, 9), LoraSegment(((0, 8, 1.0),), 8, 9)], "overlap"),
        ([LoraSegment(((0, 8, 1.0),), 5, 9), LoraSegment(((0, 8, 1.0),), 0, 2)], "order"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(segments: list[LoraSegment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(segments)


def test_a_plan_is_copied_whole_and_only_to_its_like() -> None:
    host, device = filled(SEGMENTS), ColumnPlan(CAPACITY)
    device.copy_(host)
    for ours, theirs in zip(device.tensors, host.tensors, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="does not fit"):
        ColumnPlan(PlanCapacity(40, 128, 32)).copy_(host)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_torch_twin_equals_float64(dtype: torch.dtype) -> None:
    bound = {torch.float64: 1e-7, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    for seed, block_rows in itertools.product(range(20), (16, 64)):
        case = random_case(seed, dtype)
        plan = case.plan(block_rows, max_rows=len(case.x) + 20)
        pool = (case.a, case.bt, case.scale)
        y = lora_linear(case.x, case.weight, case.bias, *pool, *plan.tensors, case.slices)
        assert y.dtype == dtype
        assert relative_error(y, case.expected()) < bound
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        dx = lora_linear_input_gradient(dy, case.weight, *pool, *plan.tensors, case.slices)
        assert relative_error(dx, case.input_gradient(dy)) < bound


def test_what_stands_in_one_adapter_cannot_reach_the_rows_of_another() -> None:
    case = random_case(5)
    case.segments = [LoraSegment(((0, 4, 1.0),), 0, 1), LoraSegment(((4, 4, 1.0),), 1, 2)]
    assert len(case.x) > 1
    case.a, case.bt = case.a.nan_to_num(), case.bt.nan_to_num()
    case.scale = torch.ones_like(case.scale)
    case.bt[0:4] = torch.inf
    plan = case.plan(16)
    pool = (case.a, case.bt, case.scale)
    y = lora_linear(case.x, case.weight, case.bias, *pool, *plan.tensors, case.slices)
    assert y[1:].isfinite().all()
