"""The fused LoRA linear in plain torch: same arguments, same result; the CPU implementation.

    Y[m] = X[m] W^T + bias + sum over the columns c of row m of S[m, c] * Bt[row(c)]
    S[m, c] = scale[row(c), z] * weight(c) * (X[m] . A[row(c), z])      z: the slice of the output

It goes segment by segment, so what stands in one adapter's rows cannot reach another one's, and
computes in float32 at least, rounding once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedSegment:
    """Rows [start, end) of the step and their columns: pool rows [columns], weights [columns]."""

    start: int
    end: int
    pool_rows: Tensor
    weights: Tensor


def packed_segments(
    row_columns: Tensor, column_rows: Tensor, column_weights: Tensor
) -> Iterator[PackedSegment]:
    """The segments that a plan's tables describe, without the padding of their columns."""
    bounds = row_columns.tolist()
    start = 0
    for end in range(1, len(bounds) + 1):
        if end < len(bounds) and bounds[end] == bounds[start]:
            continue
        lo, hi = bounds[start]
        pool_rows = column_rows[lo:hi]
        used = pool_rows >= 0
        if used.any():
            yield PackedSegment(start, end, pool_rows[used].long(), column_weights[lo:hi][used])
        start = end


def slice_bounds(slices: Sequence[int]) -> list[tuple[int, int]]:
    """Output columns [lo, hi) of each slice."""
    ends = [sum(slices[: z + 1]) for z in range(len(slices))]
    return [(end - width, end) for end, width in zip(ends, slices, strict=True)]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of products of `dtype` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def lora_linear(
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
    slices: Sequence[int],
) -> Tensor:
    """Y [M, N]. x: [M, K]; weight: [N, K]; bias: [N]; a: [P, Z, K]; bt: [P, N]; scale: [P, Z].

    The tables are those of a `ColumnPlan`; slices: the widths of the Z slices of N. Source: LoRA,
    arXiv 2106.09685, section 4.1.
    """
    del tile_columns  # for kernels that compute tiles
    dtype = accumulation_dtype(x.dtype)
    y = x.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        y += bias.to(dtype)
    for segment in packed_segments(row_columns[: x.shape[0]], column_rows, column_weights):
        rows = slice(segment.start, segment.end)
        for z, (lo, hi) in enumerate(slice_bounds(slices)):
            scales = scale[segment.pool_rows, z].to(dtype) * segment.weights
            s = x[rows].to(dtype) @ a[segment.pool_rows, z].to(dtype).t() * scales
            y[rows, lo:hi] += s @ bt[segment.pool_rows, lo:hi].to(dtype)
    return y.to(x.dtype)


def lora_linear_input_gradient(
    dy: Tensor,
    weight: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: Sequence[int],
) -> Tensor:
    """dX [M, K] = dY W + T A, T = scale * (dY_z Bt_z^T). dy: [M, N]; the rest as in the forward."""
    del tile_columns
    dtype = accumulation_dtype(dy.dtype)
    dx = dy.to(dtype) @ weight.to(dtype)
    for segment in packed_segments(row_columns[: dy.shape[0]], column_rows, column_weights):
        rows = slice(segment.start, segment.end)
        for z, (lo, hi) in enumerate(slice_bounds(slices)):
            scales = scale[segment.pool_rows, z].to(dtype) * segment.weights
            t = dy[rows, lo:hi].to(dtype) @ bt[segment.pool_rows, lo:hi].to(dtype).t() * scales
            dx[rows] += t @ a[segment.pool_rows, z].to(dtype)
    return dx.to(dy.dtype)
