"""8-bit linear layers against the same rounding in float64, and rows against their neighbours."""

from __future__ import annotations

import pytest
import torch

from polygraft.kernels.native.int8 import Int8Linear, quantize_rows

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 5e-3}  # of the largest value: rounding of y only
SHAPES = [(1, 1), (7, 5), (32, 4), (33, 130), (96, 72), (192, 576)]


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected_output(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Both factors rounded to 127 steps of their row's largest, then multiplied in float64."""

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        step = rows.float().abs().amax(1, keepdim=True) / 127
        step[step == 0] = 1
        return (rows.float() * (1 / step)).round().double() * step.double()

    step = weight.float().abs().amax(1, keepdim=True) / 127
    return rounded(x) @ ((weight.float() / step).round().double() * step).t() + bias.double()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2, 11, 12, 13, 25, 70])
def test_it_equals_float64(shape: tuple[int, int], dtype: torch.dtype, rows: int) -> None:
    weight = drawn(*shape, seed=0, dtype=dtype)
    bias = drawn(shape[0], seed=1, dtype=dtype)
    x = drawn(rows, shape[1], seed=2, dtype=dtype)
    y = Int8Linear(weight, bias)(x)
    assert y.shape == (rows, shape[0])
    assert y.dtype is dtype
    if rows:
        expected = expected_output(x, weight, bias)
        # A value that lies in the middle of two steps may be rounded to either.
        step = x.double().abs().amax() / 127 * weight.double().abs().amax()
        assert (y.double() - expected).abs().max() <= BOUNDS[dtype] * expected.abs().max() + step


def test_rounding_costs_about_a_percent() -> None:
    weight = drawn(256, 512, seed=0, dtype=torch.float32)
    x = drawn(64, 512, seed=1, dtype=torch.float32)
    exact = x.double() @ weight.double().t()
    error = (Int8Linear(weight, None)(x) - exact).norm() / exact.norm()
    assert 1e-3 < error < 2e-2


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_row_is_the_same_among_any_neighbours(dtype: torch.dtype) -> None:
    linear = Int8Linear(drawn(160, 96, seed=0, dtype=dtype), None)
    x = drawn(70, 96, seed=1, dtype=dtype)
    x[::3] *= 1000
    alone = torch.cat([linear(row[None]) for row in x])
    for count in range(1, 71):
        assert torch.equal(linear(x[:count]), alone[:count])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 70, 71])
def test_a_broken_row_stays_alone(value: float, place: int) -> None:
    linear = Int8Linear(drawn(40, 72, seed=0, dtype=torch.float32), None)
    x = drawn(5, 72, seed=1, dtype=torch.float32)
    clean = linear(x)
    x[2, place] = value
    y = linear(x)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_zero_rows_and_zero_weights_give_zero() -> None:
    weight = drawn(40, 72, seed=0, dtype=torch.float32)
    weight[3] = 0
    x = drawn(3, 72, seed=1, dtype=torch.float32)
    x[1] = 0
    y = Int8Linear(weight, None)(x)
    assert y[1].eq(0).all()
    assert y[:, 3].eq(0).all()
    assert y.isfinite().all()


def test_the_largest_weight_of_each_row_takes_the_last_step() -> None:
    weight = drawn(9, 33, seed=0, dtype=torch.bfloat16)
    quantized, scale = quantize_rows(weight)
    assert quantized.abs().amax(1).eq(127).all()
    error = (quantized * scale[:, None] - weight.float()).abs()
    assert (error <= scale[:, None] * 0.5 * (1 + 1e-6)).all()
