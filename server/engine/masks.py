"""Which keys a layer lets a position see, asked of the model's own mask code.

The engine attends causally, within the window that a layer passes. Whether that is what the model
means cannot be seen on the few tokens of a probe: a window or a chunk of thousands shows only
behind them. But transformers describes every mask by a function of two positions, which the probe
catches and evaluates over the whole context.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polygraft.adapters.errors import ModelRefused

# (batch index, head index, query position, key position) -> whether the key is seen
Pattern = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_PATTERN = "polygraft_pattern"  # attribute of the masks made here


def pattern_mask(
    *, q_length: int, kv_length: int, mask_function: Pattern, dtype: torch.dtype, **_: Any
) -> Tensor:
    """Stands in for transformers' mask builders: an empty mask that remembers its pattern."""
    mask = torch.zeros(1, 1, q_length, kv_length, dtype=dtype)
    setattr(mask, _PATTERN, mask_function)
    return mask


def require_causal(
    mask: Tensor | None, *, window: int | None, context_length: int, layer: int
) -> None:
    """Raise ModelRefused unless `mask` hides exactly what the engine hides: later keys, and those
    at or before position - window."""
    if mask is None:
        pattern: Pattern = _causal
    elif hasattr(mask, _PATTERN):
        pattern = getattr(mask, _PATTERN)
    else:
        raise ModelRefused(
            f"layer {layer} passes an attention mask of its own making, which the engine does not "
            "apply.",
            item="attention_mask",
            found=str(tuple(mask.shape)),
            hint="Serve a model with causal or sliding-window attention.",
        )
    wrong = first_difference(pattern, window, context_length)
    if wrong is not None:
        limit = f"Serve it with engine.max_context <= {wrong}." if wrong else ""
        raise ModelRefused(
            f"from position {wrong} on, layer {layer} sees other keys than a causal "
            f"{f'window of {window}' if window else 'attention'} does.",
            item="attention_mask",
            found=f"another mask from position {wrong}",
            hint=limit or "Serve a model with causal or sliding-window attention.",
        )


def first_difference(pattern: Pattern, window: int | None, context_length: int) -> int | None:
    """The first position that sees other keys than the window lets it; None if there is none.

    Asked at some positions, the last one among them; between two of them it is taken to change
    once, as windows and chunks do.
    """
    keys = torch.arange(context_length)

    def differs(position: int) -> bool:
        query = torch.tensor(position)
        zero = torch.tensor(0)
        expected = (keys <= position) & (keys > position - (window or context_length))
        return not torch.equal(expected, pattern(zero, zero, query, keys).expand_as(keys))

    before = -1
    for position in _positions(window, context_length):
        if differs(position):
            between = range(before + 1, position)
            return before + 1 + bisect.bisect_left(between, True, key=differs)
        before = position
    return None


def _positions(window: int | None, context_length: int) -> list[int]:
    marks = {0, context_length - 1, *(1 << i for i in range(context_length.bit_length()))}
    if window:
        marks |= {window, 2 * window}
    near = {mark + offset for mark in marks for offset in (-1, 0, 1)}
    return sorted(position for position in near if 0 <= position < context_length)


def _causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query
