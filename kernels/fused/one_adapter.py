"""The fused linear with one adapter for all rows, as in training: tables of sizes only.

Tensors only; what computes is the operator `polygraft::lora_linear`, hence Triton on a GPU and the
reference on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.kernels.fused import operator as _operator  # noqa: F401  registers it
from polygraft.kernels.fused.plan import COLUMN_ALIGNMENT

_TILE_ROWS = 128  # Why: the tiles of training-sized products, so that no table is made anew


@dataclass(frozen=True, slots=True)
class OneAdapterTables:
    """The tables of a `ColumnPlan` all of whose rows, `num_rows`, belong to one adapter.

    Made by torch's operators, so that shapes can be followed without content (fake tensors).
    """

    num_rows: int
    tensors: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def make(cls, rows: int, rank: int, device: torch.device) -> OneAdapterTables:
        """For products of up to `rows` rows, rounded up to a power of two."""
        num_rows = max(_TILE_ROWS, 1 << max(rows - 1, 0).bit_length())
        columns = -(-rank // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT
        bounds = torch.tensor([[0, columns]], dtype=torch.int32, device=device)
        pool_rows = torch.arange(columns, dtype=torch.int32, device=device)
        tables = (
            bounds.repeat(num_rows, 1),
            bounds.repeat(num_rows // _TILE_ROWS, 1),
            torch.where(pool_rows < rank, pool_rows, -1),
            torch.ones(columns, dtype=torch.float32, device=device),
        )
        return cls(num_rows, tables)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    tables: OneAdapterTables,
) -> Tensor:
    """x W^T + bias + scaling * (x A^T) B^T, differentiable in x, A and B; W and bias are frozen.

    x: [..., K]; weight: [N, K]; bias: [N]; lora_a: [rank, K]; lora_b: [N, rank], both rounded to
    the type of x. The tables must be of at least as many rows as x has.
    """
    rows = x.reshape(-1, x.shape[-1])
    assert len(rows) <= tables.num_rows
    a = lora_a.to(x.dtype).unsqueeze(1)  # [P, Z = 1, K]
    bt = lora_b.to(x.dtype).t().contiguous()  # [P, N]
    scale = torch.full((len(lora_a), 1), scaling, dtype=torch.float32, device=x.device)
    y: Tensor = torch.ops.polygraft.lora_linear(
        rows, weight, bias, a, bt, scale, *tables.tensors, [len(weight)]
    )
    return y.view(*x.shape[:-1], -1)
