"""The native row kernels against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polygraft.kernels.native.library import native_kernels
from polygraft.kernels.native.rows import HeadRotation, add_rms_norm, rms_norm, silu_mul

DTYPES = [torch.float32, torch.bfloat16]
# Relative to the largest value: bfloat16 keeps 8 bits, and transformers' code rounds twice.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 1.2e-2}
WIDTHS = [1, 7, 16, 40, 64, 576, 1537]


def test_this_machine_can_compile_them() -> None:
    assert native_kernels() is not None, "CI has a compiler"


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    assert error <= BOUNDS[found.dtype]


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    x, w = random(5, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    expected = F.rms_norm(x.double(), (width,), w.double(), 1e-5)
    assert_close(rms_norm(x, w, 1e-5), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm_changes_the_residual(width: int, dtype: torch.dtype) -> None:
    x, y, w = (random(*s, dtype=dtype, seed=i) for i, s in enumerate([(5, width)] * 2 + [(width,)]))
    total = (x.double() + y.double()).to(dtype)
    found = add_rms_norm(x, y, w, 1e-5)
    assert torch.equal(x, total)
    assert_close(found, F.rms_norm(total.double(), (width,), w.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    x = 4 * random(5, 2 * width, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    assert_close(silu_mul(x), F.silu(gate) * up)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 100.0, -100.0])
def test_silu_mul_at_the_ends(value: float) -> None:
    x = torch.full((1, 64), value)
    x[:, 32:] = 1.0
    expected = F.silu(x[:, :32])
    torch.testing.assert_close(silu_mul(x), expected, equal_nan=True, rtol=1e-5, atol=1e-30)


def test_silu_mul_of_minus_infinity_is_not_finite() -> None:
    """torch gives NaN or -inf, depending on its vector width; the row must be seen as broken."""
    x = torch.full((1, 64), -float("inf"))
    x[:, 32:] = 1.0
    assert not silu_mul(x).isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_stays_alone(bad: float, dtype: torch.dtype) -> None:
    x, w = random(4, 48, dtype=dtype), random(48, dtype=dtype, seed=1)
    clean = rms_norm(x, w, 1e-5)
    x[2, 5] = bad
    found = rms_norm(x, w, 1e-5)
    assert not found[2].isfinite().all()
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (8, 8), (20, 20), (40, 16)])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_fills_the_cache(dim: int, rotary: int, normed: bool, dtype: torch.dtype) -> None:
    heads, kv_heads, rows = 4, 2, 5
    keys, values = (torch.zeros(kv_heads, 64, dim, dtype=dtype) for _ in range(2))
    q_norm, k_norm = (random(dim, dtype=dtype, seed=s) if normed else None for s in (3, 4))
    qkv = random(rows, (heads + 2 * kv_heads) * dim, dtype=dtype)
    cosine, sine = (random(rows, rotary, dtype=dtype, seed=s) for s in (1, 2))
    cells = torch.tensor([3, 9, 60, 1, 2])
    expected = qkv.double().view(rows, -1, dim).clone()
    rotated = expected[:, : heads + kv_heads]
    if q_norm is not None and k_norm is not None:
        rotated[:, :heads] = F.rms_norm(rotated[:, :heads], (dim,), q_norm.double(), 1e-6)
        rotated[:, heads:] = F.rms_norm(rotated[:, heads:], (dim,), k_norm.double(), 1e-6)
    part = rotated[..., :rotary].clone()
    turned = torch.cat([-part[..., rotary // 2 :], part[..., : rotary // 2]], -1)
    rotated[..., :rotary] = part * cosine.double()[:, None] + turned * sine.double()[:, None]
    rotation = HeadRotation(keys, values, heads=heads, q_norm=q_norm, k_norm=k_norm, eps=1e-6)
    rotation(qkv, cosine, sine, cells)
    found = qkv.view(rows, -1, dim)
    assert_close(found, expected)
    assert torch.equal(keys[:, cells].transpose(0, 1), found[:, heads : heads + kv_heads])
    assert torch.equal(values[:, cells].transpose(0, 1), found[:, heads + kv_heads :])
    untouched = torch.ones(64, dtype=torch.bool).index_fill(0, cells, False)
    assert not keys[:, untouched].any()
