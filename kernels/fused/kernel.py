"""Kernel I: a linear layer and the low-rank updates of a mixed batch, in one launch.

    Y[m] = X[m] W^T + bias + sum over the columns c of row m of S[m, c] * E[row(c)]
    S[m, c] = scale[row(c), z] * weight(c) * (X[m] . D[row(c)])         base-only rows: no columns

Forward, D is the A pool, E the transposed B pool, and z the slice of the output that a tile lies in
(N0, N1, N2). For the gradient of X the same kernel takes dY for X, W transposed by its strides, and
the pools exchanged; the slices are then those of the sum (K0, K1, K2).

Grid        num_splits * row tiles * output tiles programs, each owns one tile of Y (of one split).
            No program waits for another. With several splits a tile's last program, whichever it
            is, adds the float32 planes in the order of the splits: no float atomics, the same bits
            always.
Columns     The first BLOCK_C columns of a tile ride in its main loop; X is read again (from L2) for
            each further BLOCK_C. A tile without columns runs the main loop of a plain GEMM.
Isolation   S is selected by row, not multiplied by zero, and a non-finite element of E is taken out
            and makes only the rows of its own adapter NaN: adapters cannot reach each other.
Precision   float32 sums; S is rounded once to the type of X, Y once at the store.
Contract    rows in the order of the plan; X, Y, pools with contiguous last dimension. Sizes need
            not be multiples of anything. Pool rows outside the plan are never read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from polygraft.kernels.fused.tile_functions import (
    dot,
    dot_rows,
    locate,
    multiply,
    write_tile,
    zeros,
)


@triton.jit
def _expand(
    acc,
    low,
    e_ptrs,
    mask_n,
    mask_c,
    offs_c,
    first,
    last,
    scale,
    SWAP: tl.constexpr,
    SWAP_LOW: tl.constexpr,
):
    """acc += S E: each row takes its own columns [first, last) of `low`, scaled."""
    e = tl.load(e_ptrs, mask=mask_n[:, None] & mask_c[None, :], other=0.0)  # [BLOCK_N, BLOCK_C]
    finite = tl.abs(e.to(tl.float32)) < float("inf")
    broken = tl.max(tl.where(finite, 0, 1), axis=0)  # [BLOCK_C]
    e = tl.where(finite, e, 0.0)
    scale = tl.where(broken > 0, float("nan"), scale)
    if SWAP_LOW:
        own = (offs_c[:, None] >= first[None, :]) & (offs_c[:, None] < last[None, :])
        s = tl.where(own, low * scale[:, None], 0.0).to(e.dtype)
        return dot(e, s, acc)
    else:
        own = (offs_c[None, :] >= first[:, None]) & (offs_c[None, :] < last[:, None])
        s = tl.where(own, low * scale[None, :], 0.0).to(e.dtype)
        return dot_rows(s, e, acc, SWAP)


@triton.jit
def _add_columns(
    acc,
    c,
    c_end,
    first,
    last,
    x_rows,
    w_rows,
    d_ptr,
    e_ptr,
    scale_ptr,
    column_rows_ptr,
    column_weights_ptr,
    offs_n,
    mask_m,
    mask_n,
    k_begin,
    k_end,
    stride_wk,
    stride_dp,
    stride_ep,
    stride_sp,
    WITH_BASE: tl.constexpr,
    EVEN_K: tl.constexpr,
    SWAP: tl.constexpr,
    SWAP_LOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """acc += the update by the columns [c, c + BLOCK_C), and X W^T if asked for."""
    offs_c = c + tl.arange(0, BLOCK_C)
    row = tl.load(column_rows_ptr + offs_c, mask=offs_c < c_end, other=-1)
    mask_c = row >= 0
    row = row.to(tl.int64)
    acc, low = multiply(
        acc, zeros(BLOCK_M, BLOCK_C, SWAP_LOW), x_rows, w_rows, d_ptr + row[:, None] * stride_dp,
        mask_m, mask_n, mask_c, k_begin, k_end, stride_wk, WITH_BASE, True, EVEN_K,
        SWAP, SWAP_LOW, BLOCK_K,
    )  # fmt: skip
    scale = tl.load(scale_ptr + row * stride_sp, mask=mask_c, other=0.0)
    scale *= tl.load(column_weights_ptr + offs_c, mask=mask_c, other=0.0)
    return _expand(
        acc, low, e_ptr + row[None, :] * stride_ep + offs_n[:, None], mask_n, mask_c, offs_c,
        first, last, scale, SWAP, SWAP_LOW,
    )  # fmt: skip


# Why: a count of 1, or one divisible by 16, must not compile the kernel anew.
@triton.jit(do_not_specialize=["M", "num_splits"])
def fused_lora_linear(
    x_ptr,
    w_ptr,
    bias_ptr,
    d_ptr,
    e_ptr,
    scale_ptr,
    row_columns_ptr,
    tile_columns_ptr,
    column_rows_ptr,
    column_weights_ptr,
    y_ptr,
    planes_ptr,
    arrivals_ptr,
    M,
    num_splits,
    split_inputs,
    stride_xm,
    stride_wn,
    stride_wk,
    stride_dp,
    stride_dz,
    stride_ep,
    stride_ez,
    stride_sp,
    stride_ym,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SWAP: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tl.static_assert(not IS_SPLIT or K1 == 0, "a sum in slices is not split")
    N: tl.constexpr = N0 + N1 + N2
    K: tl.constexpr = K0 + K1 + K2
    K_SLICES: tl.constexpr = 1 + (K1 > 0) + (K2 > 0)
    # Why: the low-rank sums of 64 rows fit the tensor core's instruction as they stand.
    SWAP_LOW: tl.constexpr = SWAP and BLOCK_M < 64
    ALIGNED_K: tl.constexpr = K0 % 16 == 0 and K1 % 16 == 0 and K2 % 16 == 0

    split, tile, pid_m, n_begin, n_end, z = locate(
        tl.program_id(0), M, N0, N1, N2, BLOCK_M, BLOCK_N, GROUP_M
    )
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = n_begin + tl.arange(0, BLOCK_N)
    mask_m = offs_m < M
    mask_n = offs_n < n_end
    # Why int64: rows times strides pass 2^31 from 87 000 rows of 24 KB on.
    x_rows = x_ptr + offs_m[:, None].to(tl.int64) * stride_xm
    w_rows = w_ptr + offs_n[:, None].to(tl.int64) * stride_wn
    c_begin = tl.load(tile_columns_ptr + 2 * pid_m)
    c_end = tl.load(tile_columns_ptr + 2 * pid_m + 1)
    acc = zeros(BLOCK_M, BLOCK_N, SWAP)

    if c_end > c_begin:
        first = tl.load(row_columns_ptr + 2 * offs_m)
        last = tl.load(row_columns_ptr + 2 * offs_m + 1)
        for k_slice in range(K_SLICES):
            k_begin, k_end = (
                split * split_inputs,
                tl.minimum(split * split_inputs + split_inputs, K),
            )
            if K_SLICES > 1:
                k_begin = tl.where(k_slice == 0, 0, tl.where(k_slice == 1, K0, K0 + K1))
                k_end = tl.where(k_slice == 0, K0, tl.where(k_slice == 1, K0 + K1, K))
            if ALIGNED_K:
                k_begin = tl.multiple_of(k_begin, 16)
            acc = _add_columns(
                acc, c_begin, c_end, first, last, x_rows, w_rows,
                d_ptr + (z + k_slice) * stride_dz, e_ptr + (z + k_slice) * stride_ez,
                scale_ptr + z + k_slice, column_rows_ptr, column_weights_ptr,
                offs_n, mask_m, mask_n, k_begin, k_end,
                stride_wk, stride_dp, stride_ep, stride_sp,
                True, EVEN_K, SWAP, SWAP_LOW, BLOCK_M, BLOCK_K, BLOCK_C,
            )  # fmt: skip
            for c in range(c_begin + BLOCK_C, c_end, BLOCK_C):
                acc = _add_columns(
                    acc, c, c_end, first, last, x_rows, w_rows,
                    d_ptr + (z + k_slice) * stride_dz, e_ptr + (z + k_slice) * stride_ez,
                    scale_ptr + z + k_slice, column_rows_ptr, column_weights_ptr,
                    offs_n, mask_m, mask_n, k_begin, k_end,
                    stride_wk, stride_dp, stride_ep, stride_sp,
                    False, EVEN_K, SWAP, SWAP_LOW, BLOCK_M, BLOCK_K, BLOCK_C,
                )  # fmt: skip
    else:
        acc, _ = multiply(
            acc, acc, x_rows, w_rows, w_rows, mask_m, mask_n, mask_n,
            split * split_inputs, tl.minimum(split * split_inputs + split_inputs, K), stride_wk,
            True, False, EVEN_K, SWAP, SWAP, BLOCK_K,
        )  # fmt: skip

    write_tile(
        acc, y_ptr, bias_ptr, planes_ptr, arrivals_ptr, split, tile, M, offs_m, offs_n,
        mask_m, mask_n, num_splits, stride_ym, N, HAS_BIAS, SWAP, IS_SPLIT,
    )  # fmt: skip
