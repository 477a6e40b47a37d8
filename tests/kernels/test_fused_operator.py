"""The torch operator of the fused linear: torch's own checks, and gradients against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_support.fused_cases import FusedCase, random_case
from tolerances import relative_error

from polygraft.kernels.fused import operator
from polygraft.kernels.fused.plan import retile

OPERATOR = torch.ops.polygraft.lora_linear.default
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
)


def trainable(case: FusedCase, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, a and bt as leaves, without the NaN of rows that no adapter owns."""
    leaves = (case.x, case.a.nan_to_num(), case.bt.nan_to_num())
    return tuple(leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in leaves)


def arguments(case: FusedCase) -> tuple[Any, ...]:
    x, a, bt = trainable(case, torch.float32)
    plan = case.plan(16)
    return x, case.weight, case.bias, a, bt, case.scale, *plan.tensors, list(case.slices)


@pytest.mark.parametrize("seed", [8, 9])
def test_the_operator_is_what_torch_expects(seed: int) -> None:
    torch.library.opcheck(OPERATOR, arguments(random_case(seed, max_rows=8)), test_utils=CHECKS)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_equal_those_of_float64(seed: int, dtype: torch.dtype) -> None:
    case = random_case(seed, dtype)
    dy = torch.randn(len(case.x), len(case.weight), generator=torch.Generator().manual_seed(seed))
    dy = dy.to(dtype)
    x, a, bt = trainable(case, dtype)
    y = operator.lora_linear(
        x, case.weight, case.bias, a, bt, case.scale, case.plan(16), case.slices
    )
    y.backward(dy)  # type: ignore[no-untyped-call]
    case.x, case.a, case.bt = exact = trainable(case, torch.float64)
    (case.expected() * dy.double()).sum().backward()  # type: ignore[no-untyped-call]
    bound = {torch.float32: 1e-5}.get(dtype, 2 * torch.finfo(dtype).eps)
    for ours, theirs in zip((x, a, bt), exact, strict=True):
        assert ours.grad is not None
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert relative_error(ours.grad, wanted) < bound


def test_a_plan_may_be_refilled_before_the_backward() -> None:
    case = random_case(5)
    case.segments = [s for s in case.segments if s.parts and s.end > s.start][:1]
    x, a, bt = trainable(case, torch.float32)
    plan = case.plan(16)
    grads = []
    for refill in (False, True):
        y = operator.lora_linear(x, case.weight, case.bias, a, bt, case.scale, plan, case.slices)
        if refill:
            plan.fill([])
        grads.append(torch.autograd.grad(y.sum(), (x, a, bt)))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    assert grads[0][1].any()


@pytest.mark.parametrize("frozen", ["weight", "bias", "scale"])
def test_what_is_frozen_may_not_want_a_gradient(frozen: str) -> None:
    case = random_case(5)
    case.bias = torch.zeros(len(case.weight))
    x, a, bt = trainable(case, torch.float32)
    getattr(case, frozen).requires_grad_()
    with pytest.raises(ValueError, match=f"{frozen} is frozen"):
        operator.lora_linear(
            x, case.weight, case.bias, a, bt, case.scale, case.plan(16), case.slices
        )


def test_a_plan_for_other_tiles_is_the_same_plan() -> None:
    for seed in range(60):
        case = random_case(seed)
        ours, wanted = case.plan(16), case.plan(64)
        rows, tiles = retile(ours.row_columns, ours.tile_columns, 64)
        assert torch.equal(rows, wanted.row_columns)
        assert torch.equal(tiles, wanted.tile_columns)
        rows, tiles = retile(wanted.row_columns, wanted.tile_columns, 16)
        assert torch.equal(tiles[: len(ours.tile_columns)], ours.tile_columns)
        assert not tiles[len(ours.tile_columns) :].any()
