"""What the operator does on a GPU, interpreted: the tiles of each target, plans of other tiles."""

from __future__ import annotations

import pytest
from kernel_support.fused_cases import random_case
from tolerances import relative_error

from polygraft.kernels.fused import operator
from polygraft.kernels.fused.dispatch import Dispatcher
from polygraft.kernels.fused.tiles import Target


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("seed", [4, 6, 9, 40])
def test_the_tiles_of_each_target_compute_the_same(
    target: Target, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "dispatcher_of", lambda device: Dispatcher(target))
    case = random_case(seed)
    plan = case.plan(32)
    pool = (case.a, case.bt, case.scale)
    y = operator._forward_gpu(
        case.x, case.weight, case.bias, *pool, *plan.tensors, list(case.slices)
    )
    assert relative_error(y, case.expected()) < 1e-5
    dx = operator._input_gradient_gpu(y, case.weight, *pool, *plan.tensors, list(case.slices))
    assert relative_error(dx, case.input_gradient(y)) < 1e-5
