"""Packed and plain linear against float64."""

from __future__ import annotations

import pytest
import torch
from tolerances import relative_error

from polygraft.kernels.linear import PackedLinear
from polygraft.kernels.reference import lora_linear_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3, 33])
def test_linear_equals_float64(dtype: torch.dtype, pack: bool, has_bias: bool, rows: int) -> None:
    weight = (torch.randn(57, 41) / 41**0.5).to(dtype)
    bias = torch.randn(57).to(dtype) if has_bias else None
    x = torch.randn(1, rows, 41, dtype=dtype)
    y = PackedLinear(weight, bias, pack=pack)(x)
    assert y.shape == (1, rows, 57)
    if rows:
        bound = 2e-6 if dtype is torch.float32 else 1e-2
        assert relative_error(y[0], lora_linear_reference(x[0], weight, bias, [])) <= bound


def test_plain_weights_are_kept_when_packing_is_off() -> None:
    assert not PackedLinear(torch.eye(8), None, pack=False).is_packed
