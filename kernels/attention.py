"""Attention over a paged KV cache on a CPU, for a flat batch of decodes and prefill chunks.

Knows tensors and cell numbers, not sequences. A *cell* is one token's place in the cache. A
sequence whose blocks are adjacent is read through a view; others are gathered into scratch memory
that is kept between calls, since fresh memory costs more than the copy itself. The cache is
head-major, so that what is read is contiguous per head, as the matrix products want it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LONG_CONTEXT = 512  # from here on decodes are attended one by one instead of padded together


@dataclass(slots=True)
class Context:
    """The keys one sequence may see: cells of positions 0 .. length-1."""

    cells: Tensor  # [length] int64
    first_cell: int | None  # set when the cells are adjacent: the context is a view

    @property
    def length(self) -> int:
        """Number of positions."""
        return int(self.cells.shape[0])


@dataclass(slots=True)
class PrefillRows:
    """Rows [start, end) of the step: the last `end - start` positions of `context`."""

    start: int
    end: int
    context: Context
    masks: dict[int | None, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class DecodeRows:
    """One row per sequence. `rows` is None when the decodes are all rows of the step, in order.

    cells: [B, longest] padded with the sequence's own first cell; lengths: [B].
    """

    rows: Tensor | None
    cells: Tensor
    lengths: Tensor
    contexts: list[Context]
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def is_padded(self) -> bool:
        """Whether padding every context to the longest is the cheaper way."""
        longest = self.cells.shape[1]
        wasted = self.cells.numel() - int(self.lengths.sum())
        return longest < LONG_CONTEXT and wasted <= self.cells.numel() // 2


@dataclass(slots=True)
class AttentionPlan:
    """What one step attends to. Built once per step, read by every layer."""

    prefills: list[PrefillRows]
    decodes: DecodeRows | None


class _Rule(NamedTuple):
    """How a layer turns a query and its keys into weights; see `PagedAttention.__call__`."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @property
    def is_plain(self) -> bool:
        """Whether torch's fused attention can compute it."""
        return self.softcap is None and self.sinks is None


class PagedAttention:
    """Attention of one step for any layer. Owns scratch memory; not shared between threads."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(
        self,
        plan: AttentionPlan,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q: [num_tokens, heads, d]; keys: [kv_heads, cells, d]; values: [kv_heads, cells, d_v].

        Returns [num_tokens, heads, d_v]. window: key j is seen from position i iff
        j > i - window (transformers' meaning); None for full attention. softcap: scores become
        softcap * tanh(score / softcap) (gemma2). sinks: [heads], the score of one more key whose
        value is zero and that every position sees (gpt-oss).
        """
        rule = _Rule(scaling, window, softcap, sinks)
        out = q.new_empty(q.shape[0], q.shape[1], values.shape[2])
        for chunk in plan.prefills:
            rows = slice(chunk.start, chunk.end)
            out[rows] = self._prefill(chunk, q[rows], keys, values, rule)
        decodes = plan.decodes
        if decodes is not None:
            picked = q if decodes.rows is None else q.index_select(0, decodes.rows)
            attend = self._decode_padded if decodes.is_padded else self._decode_each
            result = attend(decodes, picked, keys, values, rule)
            if decodes.rows is None:
                return result
            out.index_copy_(0, decodes.rows, result)
        return out

    def _prefill(
        self, chunk: PrefillRows, q: Tensor, keys: Tensor, values: Tensor, rule: _Rule
    ) -> Tensor:
        k, v = self._read(chunk.context, keys, values)
        groups = q.shape[1] // k.shape[0]
        n, length = q.shape[0], k.shape[1]
        if not rule.is_plain:
            mask = _chunk_mask(chunk, n, length, rule.window, torch.float32)
            grouped = q.transpose(0, 1).reshape(k.shape[0], groups * n, -1)
            out = _attend(grouped, k, v, rule, mask.repeat(groups, 1))
            return out.view(q.shape[1], n, -1).transpose(0, 1)
        whole = n == length and (rule.window is None or length <= rule.window)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            _repeat_heads(k, groups),
            _repeat_heads(v, groups),
            attn_mask=None if whole else _chunk_mask(chunk, n, length, rule.window, q.dtype),
            is_causal=whole,
            scale=rule.scaling,
        )
        return out[0].transpose(0, 1)

    def _decode_padded(
        self, decodes: DecodeRows, q: Tensor, keys: Tensor, values: Tensor, rule: _Rule
    ) -> Tensor:
        batch, longest = decodes.cells.shape
        flat = decodes.cells.view(-1)
        k = self._gather("k", keys, flat).view(-1, batch, longest, keys.shape[2])
        v = self._gather("v", values, flat).view(-1, batch, longest, values.shape[2])
        grouped = q.view(batch, k.shape[0], -1, q.shape[2]).transpose(0, 1)
        out = _attend(grouped, k, v, rule, _decode_mask(decodes, rule.window))
        return out.transpose(0, 1).reshape(batch, q.shape[1], -1)

    def _decode_each(
        self, decodes: DecodeRows, q: Tensor, keys: Tensor, values: Tensor, rule: _Rule
    ) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[1], values.shape[2])
        for row, context in enumerate(decodes.contexts):
            k, v = self._read(_clip(context, rule.window), keys, values)
            grouped = q[row].view(k.shape[0], -1, q.shape[2])
            out[row] = _attend(grouped, k, v, rule, None).reshape(q.shape[1], -1)
        return out

    def _read(self, context: Context, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if context.first_cell is not None:
            span = slice(context.first_cell, context.first_cell + context.length)
            return keys[:, span], values[:, span]
        return self._gather("k", keys, context.cells), self._gather("v", values, context.cells)

    def _gather(self, name: str, cache: Tensor, cells: Tensor) -> Tensor:
        """[kv_heads, len(cells), dim], in scratch memory that the next gather overwrites."""
        heads, _, dim = cache.shape
        size = heads * cells.shape[0] * dim
        scratch = self._scratch.get((name, cache.dtype))
        if scratch is None or scratch.shape[0] < size:
            scratch = cache.new_empty(max(size, 1 << 16))
            self._scratch[name, cache.dtype] = scratch
        out = scratch[:size].view(heads, -1, dim)
        return torch.index_select(cache, 1, cells, out=out)


def _attend(q: Tensor, k: Tensor, v: Tensor, rule: _Rule, mask: Tensor | None) -> Tensor:
    """The rows of a key head are its query heads, each with its query positions.

    q: [kv_heads, ..., rows, d]; k: [kv_heads, ..., length, d]; v: [kv_heads, ..., length, d_v].
    Scores and softmax are float32 for any dtype, which is as exact as torch's fused attention and
    1.6 times faster on a CPU for one query (docs/benchmarks.md).
    """
    scores = torch.matmul(q.float() * rule.scaling, k.float().transpose(-1, -2))
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
    if mask is not None:
        scores += mask
    if rule.sinks is None:
        weights = scores.softmax(-1)
    else:
        sink = _sink_column(rule.sinks, scores)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    return torch.matmul(weights.to(v.dtype), v)


def _sink_column(sinks: Tensor, scores: Tensor) -> Tensor:
    """[heads] -> [kv_heads, ..., rows, 1], for scores [kv_heads, ..., rows, length]."""
    kv_heads, rows = scores.shape[0], scores.shape[-2]
    groups = sinks.shape[0] // kv_heads
    column = sinks.float().view(kv_heads, groups, 1).expand(-1, -1, rows // groups)
    inner = [1] * (scores.dim() - 3)
    return column.reshape(kv_heads, *inner, rows, 1).expand(*scores.shape[:-1], 1)


def _repeat_heads(x: Tensor, groups: int) -> Tensor:
    """[kv_heads, length, d] -> [1, kv_heads * groups, length, d]."""
    return (x.repeat_interleave(groups, dim=0) if groups > 1 else x)[None]


def _clip(context: Context, window: int | None) -> Context:
    if window is None or context.length <= window:
        return context
    skip = context.length - window
    first = None if context.first_cell is None else context.first_cell + skip
    return Context(context.cells[skip:], first)


def _chunk_mask(
    chunk: PrefillRows, n: int, length: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    if window not in chunk.masks:
        position = torch.arange(length - n, length)[:, None]
        key = torch.arange(length)[None, :]
        hidden = key > position
        if window is not None:
            hidden = hidden | (key <= position - window)
        chunk.masks[window] = torch.zeros(n, length, dtype=dtype).masked_fill_(hidden, -torch.inf)
    return chunk.masks[window]


def _decode_mask(decodes: DecodeRows, window: int | None) -> Tensor:
    """[batch, 1, longest] float32, added to the scores."""
    if window not in decodes.masks:
        key = torch.arange(decodes.cells.shape[1])[None, :]
        length = decodes.lengths[:, None]
        hidden = key >= length
        if window is not None:
            hidden = hidden | (key <= length - 1 - window)
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        decodes.masks[window] = mask[:, None, :]
    return decodes.masks[window]
