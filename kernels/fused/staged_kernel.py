"""Kernel P: the low-rank sums are made once, by programs of their own, and added at the store.

The same linear as kernel I (`kernel`), whose programs each compute S anew; here S goes through
memory. One kernel, launched in stages:

FUSED       one launch. The first PRODUCERS programs of each row tile are producers: they compute
            S, then raise the tile's counter. The others compute tiles of Y and wait for that
            counter only when X W^T is done, so that S is made under the stream of W.
SHRINK      only the producers. BASE_AND_EXPAND: only the tiles of Y, in a launch after it, which
            waits for nothing or (PDL, sm_90 on) for the end of the other launch. The pair.
EXPAND      Y += S E, after SHRINK, for a Y that another kernel has computed. The hybrid.

Producers   have the lowest ids, and never wait. A chip starts programs in the order of their ids,
            so those that wait cannot keep them out; the pair is for where that is not promised.
Low         S in float32, [part, row, z, own column]: scaled, each row's own columns only. The
            parts of a split sum are added in their order: no float atomics, the same bits always.
Counters    zero at each launch with FUSED (`scratch.CounterArena`). How many producers a tile has
            work for follows from its columns; there is no table that could be wrong.
Base only   a tile without columns has no producers, and neither waits nor expands. Without any
            column the launch is a plain GEMM.
Isolation   as in kernel I: S is selected by row, and what is not finite in E makes only the rows
            of its own adapter NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from polygraft.kernels.fused.tile_functions import (
    INTERPRETED,
    dot,
    dot_rows,
    locate,
    multiply,
    write_tile,
    zeros,
)
from polygraft.kernels.fused.tiles import Stage

FUSED = tl.constexpr(int(Stage.FUSED))
SHRINK = tl.constexpr(int(Stage.SHRINK))
BASE_AND_EXPAND = tl.constexpr(int(Stage.BASE_AND_EXPAND))
EXPAND = tl.constexpr(int(Stage.EXPAND))


@triton.jit
def _produce(
    pid,
    x_ptr,
    d_ptr,
    scale_ptr,
    row_columns_ptr,
    tile_columns_ptr,
    column_rows_ptr,
    column_weights_ptr,
    low_ptr,
    ready_ptr,
    M,
    low_columns,
    stride_xm,
    stride_dp,
    stride_dz,
    stride_sp,
    Z: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    SIGNAL: tl.constexpr,
    SWAP_LOW: tl.constexpr,
    SHRINK_SPLIT: tl.constexpr,
    PRODUCERS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """This producer's share of its row tile: every PRODUCERS-th (columns, z, part of the sum)."""
    tl.static_assert(SHRINK_SPLIT == 1 or K1 == 0, "a sum in slices is not split")
    K: tl.constexpr = K0 + K1 + K2
    PART: tl.constexpr = (K + SHRINK_SPLIT * BLOCK_K - 1) // (SHRINK_SPLIT * BLOCK_K) * BLOCK_K
    EVEN_K: tl.constexpr = (
        K0 % (SHRINK_SPLIT * BLOCK_K) == 0 and K1 % BLOCK_K == 0 and K2 % BLOCK_K == 0
    )
    ALIGNED_K: tl.constexpr = K0 % 16 == 0 and K1 % 16 == 0 and K2 % 16 == 0
    tile = pid // PRODUCERS
    c_begin = tl.load(tile_columns_ptr + 2 * tile)
    c_end = tl.load(tile_columns_ptr + 2 * tile + 1)
    num_units = tl.cdiv(c_end - c_begin, BLOCK_C) * (Z * SHRINK_SPLIT)
    share = pid % PRODUCERS
    if share < num_units:
        offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        first = tl.load(row_columns_ptr + 2 * offs_m)
        last = tl.load(row_columns_ptr + 2 * offs_m + 1)
        x_rows = x_ptr + offs_m[:, None].to(tl.int64) * stride_xm
        for unit in range(share, num_units, PRODUCERS):
            part = unit % SHRINK_SPLIT
            z = unit // SHRINK_SPLIT % Z
            k_begin, k_end = part * PART, tl.minimum(part * PART + PART, K)
            if K1 > 0:
                k_begin = tl.where(z == 0, 0, tl.where(z == 1, K0, K0 + K1))
                k_end = tl.where(z == 0, K0, tl.where(z == 1, K0 + K1, K))
            if ALIGNED_K:
                k_begin = tl.multiple_of(k_begin, 16)
            offs_c = c_begin + unit // (SHRINK_SPLIT * Z) * BLOCK_C + tl.arange(0, BLOCK_C)
            row = tl.load(column_rows_ptr + offs_c, mask=offs_c < c_end, other=-1)
            mask_c = row >= 0
            row = row.to(tl.int64)
            low = zeros(BLOCK_M, BLOCK_C, SWAP_LOW)
            d_rows = d_ptr + z * stride_dz + row[:, None] * stride_dp
            _, low = multiply(
                low, low, x_rows, x_rows, d_rows, mask_m, mask_m, mask_c, k_begin, k_end, 0,
                False, True, EVEN_K, SWAP_LOW, SWAP_LOW, BLOCK_K,
            )  # fmt: skip
            scale = tl.load(scale_ptr + row * stride_sp + z, mask=mask_c, other=0.0)
            scale *= tl.load(column_weights_ptr + offs_c, mask=mask_c, other=0.0)
            plane = low_ptr + part * (M.to(tl.int64) * (Z * low_columns)) + z * low_columns
            row_offsets = offs_m.to(tl.int64) * (Z * low_columns) - first
            if SWAP_LOW:
                own = (offs_c[:, None] >= first[None, :]) & (offs_c[:, None] < last[None, :])
                own &= mask_c[:, None] & mask_m[None, :]
                own &= offs_c[:, None] - first[None, :] < low_columns
                tl.store(plane + row_offsets[None, :] + offs_c[:, None], low * scale[:, None], own)
            else:
                own = (offs_c[None, :] >= first[:, None]) & (offs_c[None, :] < last[:, None])
                own &= mask_c[None, :] & mask_m[:, None]
                own &= offs_c[None, :] - first[:, None] < low_columns
                tl.store(plane + row_offsets[:, None] + offs_c[None, :], low * scale[None, :], own)
        if SIGNAL:
            tl.debug_barrier()  # Why: one thread of the program does the atomic, for all of them
            tl.atomic_add(ready_ptr + tile, 1, sem="release")


@triton.jit
def _wait(ready_ptr, num_producers):
    """Until all producers of a row tile are done; what they wrote is then visible."""
    while tl.atomic_add(ready_ptr, 0, sem="acquire") < num_producers:
        if INTERPRETED:
            raise RuntimeError("the producers come first, so this program would wait forever")


@triton.jit
def _add_update(
    acc,
    c,
    c_end,
    first,
    last,
    low_rows,
    low_plane,
    low_columns,
    e_ptr,
    column_rows_ptr,
    offs_n,
    mask_n,
    stride_ep,
    SWAP: tl.constexpr,
    SWAP_LOW: tl.constexpr,
    SHRINK_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """acc += S E over the columns [c, c + BLOCK_C), S from `low_rows`: a pointer for each row."""
    offs_c = c + tl.arange(0, BLOCK_C)
    row = tl.load(column_rows_ptr + offs_c, mask=offs_c < c_end, other=-1)
    mask_c = row >= 0
    e_ptrs = e_ptr + row[None, :].to(tl.int64) * stride_ep + offs_n[:, None]
    e = tl.load(e_ptrs, mask=mask_n[:, None] & mask_c[None, :], other=0.0)  # [BLOCK_N, BLOCK_C]
    finite = tl.abs(e.to(tl.float32)) < float("inf")
    broken = tl.max(tl.where(finite, 0, 1), axis=0) > 0  # [BLOCK_C]
    e = tl.where(finite, e, 0.0)
    s = zeros(BLOCK_M, BLOCK_C, SWAP_LOW)
    if SWAP_LOW:
        own = (offs_c[:, None] >= first[None, :]) & (offs_c[:, None] < last[None, :])
        own &= mask_c[:, None]
        has_room = offs_c[:, None] - first[None, :] < low_columns
        places = low_rows[None, :] + offs_c[:, None]
        broken = broken[:, None] | ~has_room
    else:
        own = (offs_c[None, :] >= first[:, None]) & (offs_c[None, :] < last[:, None])
        own &= mask_c[None, :]
        has_room = offs_c[None, :] - first[:, None] < low_columns
        places = low_rows[:, None] + offs_c[None, :]
        broken = broken[None, :] | ~has_room
    for part in tl.static_range(SHRINK_SPLIT):
        s += tl.load(
            places + part * low_plane, mask=own & has_room, other=0.0, cache_modifier=".cg"
        )
    s = tl.where(own & broken, float("nan"), s).to(e.dtype)
    if SWAP_LOW:
        return dot(e, s, acc)
    else:
        return dot_rows(s, e, acc, SWAP)


@triton.jit
def _compute_tile(
    pid,
    x_ptr,
    w_ptr,
    bias_ptr,
    e_ptr,
    row_columns_ptr,
    tile_columns_ptr,
    column_rows_ptr,
    y_ptr,
    planes_ptr,
    arrivals_ptr,
    low_ptr,
    ready_ptr,
    M,
    num_splits,
    split_inputs,
    low_columns,
    stride_xm,
    stride_wn,
    stride_wk,
    stride_ep,
    stride_ez,
    stride_ym,
    Z: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    K: tl.constexpr,
    K_SLICES: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SWAP: tl.constexpr,
    SWAP_LOW: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    SHRINK_SPLIT: tl.constexpr,
    PRODUCERS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP_M: tl.constexpr,
    STAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    N: tl.constexpr = N0 + N1 + N2
    c_step = num_splits * BLOCK_C if IS_SPLIT else BLOCK_C
    split, tile, pid_m, n_begin, n_end, z = locate(
        pid, M, N0, N1, N2, BLOCK_M, BLOCK_N, GROUP_M
    )  # fmt: skip
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = n_begin + tl.arange(0, BLOCK_N)
    mask_m = offs_m < M
    mask_n = offs_n < n_end
    c_begin = tl.load(tile_columns_ptr + 2 * pid_m)
    c_end = tl.load(tile_columns_ptr + 2 * pid_m + 1)
    acc = zeros(BLOCK_M, BLOCK_N, SWAP)
    if STAGE != EXPAND:
        # Why int64: rows times strides pass 2^31 from 87 000 rows of 24 KB on.
        x_rows = x_ptr + offs_m[:, None].to(tl.int64) * stride_xm
        w_rows = w_ptr + offs_n[:, None].to(tl.int64) * stride_wn
        acc, _ = multiply(
            acc, acc, x_rows, w_rows, w_rows, mask_m, mask_n, mask_n,
            split * split_inputs, tl.minimum(split * split_inputs + split_inputs, K), stride_wk,
            True, False, EVEN_K, SWAP, SWAP, BLOCK_K,
        )  # fmt: skip
    if PDL and not INTERPRETED:
        gdc_wait()

    if c_end > c_begin:
        if STAGE == FUSED:
            num_units = tl.cdiv(c_end - c_begin, BLOCK_C) * (Z * SHRINK_SPLIT)
            _wait(ready_ptr + pid_m, tl.minimum(num_units, PRODUCERS))
        if STAGE == EXPAND:
            y_rows = y_ptr + offs_m.to(tl.int64) * stride_ym
            if SWAP:
                y_ptrs, y_mask = y_rows[None, :] + offs_n[:, None], mask_m[None, :]
                acc += tl.load(y_ptrs, mask=y_mask & mask_n[:, None], other=0.0)
            else:
                y_ptrs, y_mask = y_rows[:, None] + offs_n[None, :], mask_m[:, None]
                acc += tl.load(y_ptrs, mask=y_mask & mask_n[None, :], other=0.0)
        first = tl.load(row_columns_ptr + 2 * offs_m)
        last = tl.load(row_columns_ptr + 2 * offs_m + 1)
        low_rows = low_ptr + offs_m.to(tl.int64) * (Z * low_columns) - first
        for k_slice in range(K_SLICES):
            for c in range(c_begin + split * BLOCK_C, c_end, c_step):
                acc = _add_update(
                    acc, c, c_end, first, last, low_rows + (z + k_slice) * low_columns,
                    M.to(tl.int64) * (Z * low_columns), low_columns,
                    e_ptr + (z + k_slice) * stride_ez,
                    column_rows_ptr, offs_n, mask_n, stride_ep,
                    SWAP, SWAP_LOW, SHRINK_SPLIT, BLOCK_M, BLOCK_C,
                )  # fmt: skip
    if STAGE == EXPAND:
        mask_m = mask_m & (c_end > c_begin)  # Y of a base-only tile is left as it is
    write_tile(
        acc, y_ptr, bias_ptr, planes_ptr, arrivals_ptr, split, tile, M, offs_m, offs_n,
        mask_m, mask_n, num_splits, stride_ym, N, HAS_BIAS, SWAP, IS_SPLIT,
    )  # fmt: skip


# Why: a count of 1, or one divisible by 16, must not compile the kernel anew.
@triton.jit(do_not_specialize=["M", "num_splits"])
def staged_lora_linear(
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
    low_ptr,
    ready_ptr,
    M,
    num_splits,
    split_inputs,
    low_columns,
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
    SHRINK_SPLIT: tl.constexpr,
    SHRINK_BLOCK_K: tl.constexpr,
    PRODUCERS: tl.constexpr,
    STAGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """low_columns: float32 places of a row in `low` for each z. A row that has more columns is NaN:
    the host lets none pass (PlanCapacity.segment_columns), and nothing is written out of place."""
    tl.static_assert(not IS_SPLIT or K1 == 0, "a sum in slices is not split")
    tl.static_assert(not IS_SPLIT or STAGE != EXPAND, "an update in place is not split")
    N_SLICES: tl.constexpr = 1 + (N1 > 0) + (N2 > 0)
    K_SLICES: tl.constexpr = 1 + (K1 > 0) + (K2 > 0)
    Z: tl.constexpr = N_SLICES * K_SLICES  # one of them is 1
    SWAP_LOW: tl.constexpr = SWAP and BLOCK_M < 64  # as in kernel I
    if (STAGE == SHRINK) and (PDL and not INTERPRETED):
        gdc_launch_dependents()
    pid = tl.program_id(0)
    num_producers = 0
    if STAGE == FUSED:
        num_producers = tl.cdiv(M, BLOCK_M) * PRODUCERS
        producing = pid < num_producers
    else:
        producing: tl.constexpr = STAGE == SHRINK  # type: ignore[no-redef]
    if producing:
        _produce(
            pid, x_ptr, d_ptr, scale_ptr, row_columns_ptr, tile_columns_ptr, column_rows_ptr,
            column_weights_ptr, low_ptr, ready_ptr, M, low_columns,
            stride_xm, stride_dp, stride_dz, stride_sp,
            Z, K0, K1, K2, STAGE == FUSED, SWAP_LOW, SHRINK_SPLIT, PRODUCERS,
            BLOCK_M, SHRINK_BLOCK_K, BLOCK_C,
        )  # fmt: skip
    else:
        _compute_tile(
            pid - num_producers, x_ptr, w_ptr, bias_ptr, e_ptr, row_columns_ptr,
            tile_columns_ptr, column_rows_ptr, y_ptr, planes_ptr, arrivals_ptr, low_ptr, ready_ptr,
            M, num_splits, split_inputs, low_columns, stride_xm, stride_wn, stride_wk,
            stride_ep, stride_ez, stride_ym,
            Z, N0, N1, N2, K0 + K1 + K2, K_SLICES, EVEN_K, HAS_BIAS, SWAP, SWAP_LOW, IS_SPLIT,
            SHRINK_SPLIT, PRODUCERS, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_C, GROUP_M, STAGE, PDL,
        )  # fmt: skip
