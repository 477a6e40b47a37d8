"""`polygraft::lora_linear`: the fused linear as a torch operator, with gradients, for training and
`torch.compile`. Serving launches the kernel itself, into its own buffers.

On a CPU it is `reference`; on a GPU the kernels that `dispatch` chooses, a function of the bucket.
The base is frozen: gradients are those of X and of the two pools. Those of the pools
are plain products per segment, in float32 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polygraft.kernels.fused import reference
from polygraft.kernels.fused.dispatch import dispatcher_of, target_of
from polygraft.kernels.fused.plan import ColumnPlan, retile
from polygraft.kernels.fused.tiles import Bucket

__all__ = ["lora_linear", "target_of"]

_Grads = tuple[Tensor | None, ...]


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    plan: ColumnPlan,
    slices: Sequence[int],
) -> Tensor:
    """Y [M, N] = X W^T + bias + the low-rank updates of the plan, differentiable in x, a and bt.

    x: [M, K]; weight: [N, K]; bias: [N]; a: [P, Z, K]; bt: [P, N]; scale: float32 [P, Z]; slices:
    widths of the Z slices of N. Raises ValueError if weight, bias or scale wants a gradient.
    """
    tables: tuple[Tensor, ...] = plan.tensors
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, a, bt)):
        # Why: the backward reads them again, and autograd cannot see that a plan was refilled.
        tables = tuple(table.clone() for table in tables)
    y: Tensor = _forward(x, weight, bias, a, bt, scale, *tables, list(slices))
    return y


@torch.library.custom_op("polygraft::lora_linear", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> Tensor:
    tables = (row_columns, tile_columns, column_rows, column_weights)
    return reference.lora_linear(x, weight, bias, a, bt, scale, *tables, slices)


@_forward.register_kernel("cuda")
def _forward_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> Tensor:
    # Why here: a process without a GPU must never import Triton.
    from polygraft.kernels.fused import launch

    bucket = Bucket.forward(x.shape[0], weight.shape[1], tuple(slices))
    # Why the capacity for the columns: what a step has of them is known on the device only.
    config = dispatcher_of(x.device).choice(bucket, len(column_rows))
    rows, tiles = retile(row_columns, tile_columns, config.block_m)
    tables = (rows, tiles, column_rows, column_weights)
    return launch.lora_linear(
        x.contiguous(), weight, bias, a, bt, scale, *tables, slices, config=config
    )


@_forward.register_fake
def _forward_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("polygraft::lora_linear_dx", mutates_args=(), device_types="cpu")
def _input_gradient(
    dy: Tensor,
    weight: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> Tensor:
    tables = (row_columns, tile_columns, column_rows, column_weights)
    return reference.lora_linear_input_gradient(dy, weight, a, bt, scale, *tables, slices)


@_input_gradient.register_kernel("cuda")
def _input_gradient_gpu(
    dy: Tensor,
    weight: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> Tensor:
    from polygraft.kernels.fused import launch

    bucket = Bucket.gradient(dy.shape[0], weight.shape[1], tuple(slices))
    config = dispatcher_of(dy.device).choice(bucket, len(column_rows))
    rows, tiles = retile(row_columns, tile_columns, config.block_m)
    tables = (rows, tiles, column_rows, column_weights)
    return launch.lora_linear_input_gradient(
        dy.contiguous(), weight, a, bt, scale, *tables, slices, config=config
    )


@_input_gradient.register_fake
def _input_gradient_shape(
    dy: Tensor,
    weight: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> Tensor:
    return dy.new_empty(dy.shape[0], weight.shape[1])


@torch.library.custom_op("polygraft::lora_linear_dpools", mutates_args=())
def _pool_gradients(
    x: Tensor,
    dy: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> tuple[Tensor, Tensor]:
    """dA [P, Z, K] = T^T X and dBt [P, N] = S^T dY, summed over the segments."""
    dtype = reference.accumulation_dtype(x.dtype)
    da, dbt = torch.zeros_like(a, dtype=dtype), torch.zeros_like(bt, dtype=dtype)
    bounds = reference.slice_bounds(slices)
    segments = reference.packed_segments(row_columns[: len(x)], column_rows, column_weights)
    for segment in segments:
        rows, pool_rows = slice(segment.start, segment.end), segment.pool_rows
        xs = x[rows].to(dtype)
        for z, (lo, hi) in enumerate(bounds):
            scales = scale[pool_rows, z].to(dtype) * segment.weights
            dys = dy[rows, lo:hi].to(dtype)
            s = xs @ a[pool_rows, z].to(dtype).t() * scales
            t = dys @ bt[pool_rows, lo:hi].to(dtype).t() * scales
            da[:, z].index_add_(0, pool_rows, t.t() @ xs)
            dbt[:, lo:hi].index_add_(0, pool_rows, s.t() @ dys)
    return da.to(a.dtype), dbt.to(bt.dtype)


@_pool_gradients.register_fake
def _pool_gradient_shapes(
    x: Tensor,
    dy: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: list[int],
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(bt)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    frozen = {"weight": 1, "bias": 2, "scale": 5}
    for name, position in frozen.items():
        if ctx.needs_input_grad[position]:
            raise ValueError(f"{name} is frozen: the fused linear has no gradient for it")
    x, weight, _, *rest, slices = inputs
    ctx.save_for_backward(x, weight, *rest)
    ctx.slices = slices


def _backward(ctx: Any, dy: Tensor) -> _Grads:
    x, weight, a, bt, scale, row_columns, tile_columns, column_rows, weights = ctx.saved_tensors
    dx = da = dbt = None
    if ctx.needs_input_grad[0]:
        tables = (row_columns, tile_columns, column_rows, weights)
        dx = _input_gradient(dy, weight, a, bt, scale, *tables, ctx.slices)
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
        pools = (a, bt, scale, row_columns, column_rows, weights)
        da, dbt = _pool_gradients(x, dy, *pools, ctx.slices)
    return (dx, None, None, da, dbt, *[None] * 6)


torch.library.register_autograd("polygraft::lora_linear", _backward, setup_context=_save)
