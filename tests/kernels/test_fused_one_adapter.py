"""The fused linear of one adapter: gradients by torch's own checks, and other float types."""

from __future__ import annotations

import pytest
import torch

from polygraft.kernels.fused.one_adapter import OneAdapterTables, lora_linear
from polygraft.kernels.reference import lora_linear_reference

CPU = torch.device("cpu")


def tensors(rank: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x, weight, bias, lora_a, lora_b."""
    generator = torch.Generator().manual_seed(rank)
    shapes = (5, 24), (40, 24), (40,), (rank, 24), (40, rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("rank", [1, 16, 19])
def test_gradients_are_those_of_finite_differences(rank: int) -> None:
    x, weight, bias, a, b = tensors(rank)
    tables = OneAdapterTables.make(len(x), rank, CPU)
    leaves = [leaf.requires_grad_() for leaf in (x, a, b)]

    def run(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return lora_linear(x, weight, bias, a, b, 0.5, tables)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 128, 300])
def test_it_is_the_linear_with_its_update(rows: int, dtype: torch.dtype) -> None:
    _, weight, bias, a, b = tensors(20, dtype)
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    tables = OneAdapterTables.make(1, 20, CPU) if rows == 1 else OneAdapterTables.make(300, 20, CPU)
    y = lora_linear(x.view(rows, 1, 24), weight, bias, a.float(), b.float(), 0.5, tables)
    wanted = lora_linear_reference(x, weight, bias, [(0, rows, a, b, 0.5)])
    assert y.shape == (rows, 1, 40)
    assert y.dtype == dtype
    error = (y.view(rows, 40).double() - wanted).norm() / wanted.norm()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]


def test_its_tables_are_what_torch_expects() -> None:
    x, weight, bias, a, b = (t.float() for t in tensors(3))
    tables = OneAdapterTables.make(len(x), 3, CPU)
    pools = a.unsqueeze(1).requires_grad_(), b.t().contiguous().requires_grad_()
    scale = torch.ones(3, 1)
    arguments = (x.requires_grad_(), weight, bias, *pools, scale, *tables.tensors, [40])
    torch.library.opcheck(torch.ops.polygraft.lora_linear.default, arguments)
