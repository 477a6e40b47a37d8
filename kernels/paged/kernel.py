"""Causal attention of a mixed step over a paged cache: decodes and prefill chunks in one launch.

    out[i] = sum over keys j of softmax_j(scale * q[i] . k[j]) v[j]     j <= i, and j > i - WINDOW

With SOFTCAP a score s becomes SOFTCAP * tanh(s / SOFTCAP). With sinks a head has one more key, of
the score sinks[head], whose value is zero. Softmax is taken online (FlashAttention, arXiv
2205.14135), in float32.

Grid        (tiles, key heads, splits). A tile is some rows of one sequence; the query heads that
            share a key head are rows of it as well, so that a block of keys is read once for them.
Splits      SPLITS > 1 cuts the context at multiples of SPLIT positions, so a row is cut in the same
            places whatever its neighbours are; `paged_combine` adds the parts in their order.
Isolation   Cells that no row of the tile sees are not read, so whatever stands in them, NaN too,
            has no effect.
Contract    Tables are those of a `PagedPlan`. Last dimensions are contiguous. Heads need not be
            of a width that is a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Why: the interpreter multiplies the bit patterns of bfloat16 in `tl.dot`, silently
# (triton#11584), so there, and only there, operands are widened first.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOWEST = tl.constexpr(-1e30)  # below every score; finite, so that differences are numbers


@triton.jit
def _dot(a, b, acc):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _capped(score, SOFTCAP: tl.constexpr):
    if SOFTCAP > 0:
        power = tl.exp(-2.0 * tl.abs(score) / SOFTCAP)
        size = SOFTCAP * (1.0 - power) / (1.0 + power)
        return tl.where(score < 0, -size, size)
    else:
        return score


@triton.jit
def paged_attention(
    q_ptr,
    k_ptr,
    v_ptr,
    sinks_ptr,
    tiles_ptr,
    blocks_ptr,
    out_ptr,
    parts_ptr,
    sums_ptr,
    scale,
    stride_qt,
    stride_qh,
    stride_kh,
    stride_kc,
    stride_vh,
    stride_vc,
    stride_ot,
    stride_oh,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tile = tiles_ptr + 4 * tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    entry = tl.load(tile)
    row0 = tl.load(tile + 1)
    count = tl.load(tile + 2)
    position0 = tl.load(tile + 3)

    # positions of the keys that the tile reads: [begin, end), of them seen [first_seen, end)
    first_seen = 0
    if WINDOW > 0:
        first_seen = tl.maximum(position0 - WINDOW + 1, 0)
    end = position0 + count
    begin = first_seen // BLOCK_N * BLOCK_N
    first_split = 0
    if SPLITS > 1:
        first_split = first_seen // SPLIT
        begin = tl.maximum(begin, split * SPLIT)
        end = tl.minimum(end, (split + 1) * SPLIT)

    # rows of the tile: (query, query head of the group)
    m = tl.arange(0, BLOCK_M)
    query = m // GROUP
    head = kv_head * GROUP + m % GROUP
    live = query < count
    position = position0 + query
    row = (row0 + query).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_V)

    # Why the second part: with splits, one that no row sees writes nothing. A tile of no rows
    # (count = 0) never does.
    if (count > 0) & ((SPLITS == 1) | (begin < end)):
        q = tl.load(
            q_ptr + row[:, None] * stride_qt + head[:, None] * stride_qh + d[None, :],
            mask=live[:, None] & (d < DIM)[None, :],
            other=0.0,
        )
        top = tl.full((BLOCK_M,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + head, mask=live, other=0.0).to(tl.float32)
            top = tl.where(split == first_split, sink, top)
            total = tl.where(split == first_split, 1.0, total)
        acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        for n in range(begin, end, BLOCK_N):
            j = n + tl.arange(0, BLOCK_N)
            is_seen = (j >= first_seen) & (j < end)
            block = tl.load(blocks_ptr + entry + j // BLOCK_SIZE, mask=is_seen, other=0)
            # Why int64: cells times strides pass 2^31 elements in a large cache.
            cell = block.to(tl.int64) * BLOCK_SIZE + j % BLOCK_SIZE
            k = tl.load(
                k_ptr + kv_head.to(tl.int64) * stride_kh + cell[:, None] * stride_kc + d[None, :],
                mask=is_seen[:, None] & (d < DIM)[None, :],
                other=0.0,
            )
            v = tl.load(
                v_ptr + kv_head.to(tl.int64) * stride_vh + cell[:, None] * stride_vc + dv[None, :],
                mask=is_seen[:, None] & (dv < VALUE_DIM)[None, :],
                other=0.0,
            )
            score = _dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)) * scale
            score = _capped(score, SOFTCAP)
            sees = (j[None, :] <= position[:, None]) & (live[:, None] & is_seen[None, :])
            if WINDOW > 0:
                sees = sees & (j[None, :] > position[:, None] - WINDOW)
            score = tl.where(sees, score, LOWEST)
            new_top = tl.maximum(top, tl.max(score, 1))
            weight = tl.where(sees, tl.exp(score - new_top[:, None]), 0.0)
            rescale = tl.exp(top - new_top)
            total = total * rescale + tl.sum(weight, 1)
            acc = _dot(weight.to(v.dtype), v, acc * rescale[:, None])
            top = new_top

        heads = tl.num_programs(1) * GROUP
        if SPLITS == 1:
            # A row of padding sees nothing: its sum is zero, and so is its output.
            y = acc / tl.where(total == 0.0, 1.0, total)[:, None]
            tl.store(
                out_ptr + row[:, None] * stride_ot + head[:, None] * stride_oh + dv[None, :],
                y.to(out_ptr.dtype.element_ty),
                mask=live[:, None] & (dv < VALUE_DIM)[None, :],
            )
        else:
            part = (row * heads + head) * SPLITS + split
            tl.store(
                parts_ptr + part[:, None] * VALUE_DIM + dv[None, :],
                acc,
                mask=live[:, None] & (dv < VALUE_DIM)[None, :],
            )
            tl.store(sums_ptr + 2 * part, top, mask=live)
            tl.store(sums_ptr + 2 * part + 1, total, mask=live)


@triton.jit
def paged_combine(
    tiles_ptr,
    out_ptr,
    parts_ptr,
    sums_ptr,
    stride_ot,
    stride_oh,
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Grid (tiles, key heads): the parts of each row, in the order of the context."""
    tile = tiles_ptr + 4 * tl.program_id(0)
    row0 = tl.load(tile + 1)
    count = tl.load(tile + 2)
    position0 = tl.load(tile + 3)
    m = tl.arange(0, BLOCK_M)
    query = m // GROUP
    head = tl.program_id(1) * GROUP + m % GROUP
    live = query < count
    position = position0 + query
    row = (row0 + query).to(tl.int64)
    dv = tl.arange(0, BLOCK_V)

    first_seen = 0
    if WINDOW > 0:
        first_seen = tl.maximum(position0 - WINDOW + 1, 0)
    begin = first_seen // SPLIT
    # A tile of no rows may hold anything else of an earlier step.
    end = tl.where(count > 0, tl.cdiv(position0 + count, SPLIT), 0)
    top = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for split in range(begin, end):
        # Rows of a tile end at different positions; a part that a row has no key in is not read.
        has_part = live & (split * SPLIT <= position)
        part = (row * (tl.num_programs(1) * GROUP) + head) * SPLITS + split
        part_top = tl.load(sums_ptr + 2 * part, mask=has_part, other=LOWEST)
        part_total = tl.load(sums_ptr + 2 * part + 1, mask=has_part, other=0.0)
        values = tl.load(
            parts_ptr + part[:, None] * VALUE_DIM + dv[None, :],
            mask=has_part[:, None] & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        new_top = tl.maximum(top, part_top)
        rescale, own = tl.exp(top - new_top), tl.exp(part_top - new_top)
        total = total * rescale + part_total * own
        acc = acc * rescale[:, None] + values * own[:, None]
        top = new_top
    y = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out_ptr + row[:, None] * stride_ot + head[:, None] * stride_oh + dv[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=live[:, None] & (dv < VALUE_DIM)[None, :],
    )
