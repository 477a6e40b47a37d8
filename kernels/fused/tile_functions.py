"""What the Triton kernels of the fused linear share: products, the place of a tile, the store.

Device functions only, inlined into `kernel` and `staged_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Why: the interpreter multiplies the bit patterns of bfloat16 in `tl.dot`, silently
# (triton#11584), so there, and only there, operands are widened first.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_rows(x, other, acc, SWAP: tl.constexpr):
    """acc += x other^T, or its transpose. x: [BLOCK_M, k], other: [n, k]."""
    if SWAP:
        return dot(other, tl.trans(x), acc)
    else:
        return dot(x, tl.trans(other), acc)


@triton.jit
def zeros(rows: tl.constexpr, columns: tl.constexpr, SWAP: tl.constexpr):
    if SWAP:
        return tl.zeros((columns, rows), tl.float32)
    else:
        return tl.zeros((rows, columns), tl.float32)


@triton.jit
def multiply(
    acc,
    low,
    x_rows,
    w_rows,
    d_rows,
    mask_m,
    mask_n,
    mask_c,
    k_begin,
    k_end,
    stride_wk,
    WITH_BASE: tl.constexpr,
    WITH_COLUMNS: tl.constexpr,
    EVEN_K: tl.constexpr,
    SWAP: tl.constexpr,
    SWAP_LOW: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc += X W^T and low += X D^T over [k_begin, k_end), whichever is asked for."""
    offs_k = tl.arange(0, BLOCK_K)
    x_ptrs = x_rows + (k_begin + offs_k)[None, :]
    w_ptrs = w_rows + (k_begin + offs_k)[None, :].to(tl.int64) * stride_wk
    d_ptrs = d_rows + (k_begin + offs_k)[None, :]
    for k in range(k_begin, k_end, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=mask_m[:, None], other=0.0)
        else:
            mask_k = offs_k < k_end - k
            x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
        if WITH_BASE:
            if EVEN_K:
                w = tl.load(w_ptrs, mask=mask_n[:, None], other=0.0)
            else:
                w = tl.load(w_ptrs, mask=mask_n[:, None] & mask_k[None, :], other=0.0)
            acc = dot_rows(x, w, acc, SWAP)
            w_ptrs += BLOCK_K * stride_wk
        if WITH_COLUMNS:
            if EVEN_K:
                d = tl.load(d_ptrs, mask=mask_c[:, None], other=0.0)
            else:
                d = tl.load(d_ptrs, mask=mask_c[:, None] & mask_k[None, :], other=0.0)
            low = dot_rows(x, d, low, SWAP_LOW)
            d_ptrs += BLOCK_K
        x_ptrs += BLOCK_K
    return acc, low


@triton.jit
def store_rows(
    acc, y_ptr, bias_ptr, row_offsets, columns, mask, N: tl.constexpr, HAS_BIAS: tl.constexpr
):
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + row_offsets + columns, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def locate(
    pid,
    M,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """A program's split, tile, row tile, first and last output (+ 1), and slice of the output.

    Row tiles of one group are neighbours, so that they share W in L2. A tile lies in one slice.
    """
    TILES_0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    TILES_1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
    TILES: tl.constexpr = TILES_0 + TILES_1 + (N2 + BLOCK_N - 1) // BLOCK_N
    tiles_m = tl.cdiv(M, BLOCK_M)
    split = pid // (tiles_m * TILES)
    tile = pid % (tiles_m * TILES)
    group = tile // (GROUP_M * TILES)
    group_rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    pid_m = group * GROUP_M + (tile % (GROUP_M * TILES)) % group_rows
    pid_n = (tile % (GROUP_M * TILES)) // group_rows

    n_begin = pid_n * BLOCK_N
    n_end = N0
    z = 0
    if N1 > 0:
        second = pid_n >= TILES_0
        n_begin = tl.where(second, N0 + (pid_n - TILES_0) * BLOCK_N, n_begin)
        n_end = tl.where(second, N0 + N1, n_end)
        z = tl.where(second, 1, z)
    if N2 > 0:
        third = pid_n >= TILES_0 + TILES_1
        n_begin = tl.where(third, N0 + N1 + (pid_n - TILES_0 - TILES_1) * BLOCK_N, n_begin)
        n_end = tl.where(third, N0 + N1 + N2, n_end)
        z = tl.where(third, 2, z)
    if N0 % 16 == 0 and N1 % 16 == 0 and N2 % 16 == 0:
        n_begin = tl.multiple_of(n_begin, 16)
    return split, tile, pid_m, n_begin, n_end, z


@triton.jit
def write_tile(
    acc,
    y_ptr,
    bias_ptr,
    planes_ptr,
    arrivals_ptr,
    split,
    tile,
    M,
    offs_m,
    offs_n,
    mask_m,
    mask_n,
    num_splits,
    stride_ym,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SWAP: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """Y of one tile. If its sum is split, the tile's last program, whichever it is, adds the
    float32 planes in the order of the splits."""
    if SWAP:
        y_mask = mask_n[:, None] & mask_m[None, :]
        y_rows, y_columns = offs_m[None, :].to(tl.int64), offs_n[:, None]
    else:
        y_mask = mask_m[:, None] & mask_n[None, :]
        y_rows, y_columns = offs_m[:, None].to(tl.int64), offs_n[None, :]
    if not IS_SPLIT:
        store_rows(acc, y_ptr, bias_ptr, y_rows * stride_ym, y_columns, y_mask, N, HAS_BIAS)
    else:
        plane = planes_ptr + y_rows * N + y_columns
        step = M.to(tl.int64) * N
        tl.store(plane + split * step, acc, mask=y_mask)
        tl.debug_barrier()  # Why: one thread of the program does the atomic, for all of them
        if tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel") == num_splits - 1:
            total = tl.zeros_like(acc)
            for other in range(num_splits):
                total += tl.load(plane + other * step, mask=y_mask, other=0.0, cache_modifier=".cg")
            store_rows(total, y_ptr, bias_ptr, y_rows * stride_ym, y_columns, y_mask, N, HAS_BIAS)
            tl.store(arrivals_ptr + tile, 0)  # as the next launch needs it
