"""The multi-adapter LoRA update written for clarity: the oracle of every faster path.

y[m] = x[m] W^T + b + scaling(m) * (x[m] lora_a(m)^T) lora_b(m)^T
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lora_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    adapters: Sequence[tuple[int, int, Tensor, Tensor, float]],
) -> Tensor:
    """Float64 result of a base linear with one adapter per row segment.

    x: [num_tokens, in]; weight: [out, in]; adapters: (start, end, lora_a [rank, in],
    lora_b [out, rank], scaling). Rows outside every segment are base only. Source: LoRA,
    arXiv 2106.09685, section 4.1.
    """
    x = x.double()
    y = x @ weight.double().t()
    if bias is not None:
        y = y + bias.double()
    for start, end, lora_a, lora_b, scaling in adapters:
        y[start:end] += scaling * (x[start:end] @ lora_a.double().t()) @ lora_b.double().t()
    return y


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Float64 causal attention of the last rows of one sequence.

    q: [n, heads, d], the last n positions; k: [kv_heads, length, d]; v: [kv_heads, length, d_v].
    window: key j is seen from position i iff j > i - window; None for full attention. softcap:
    scores become softcap * tanh(score / softcap). sinks: [heads], one more score in the sum of
    each softmax.
    """
    n, heads, _ = q.shape
    kv_heads, length, _ = k.shape
    k = k.double().repeat_interleave(heads // kv_heads, dim=0)
    v = v.double().repeat_interleave(heads // kv_heads, dim=0)
    scores = torch.einsum("nhd,hld->hnl", q.double(), k) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(length - n, length)[:, None]
    key = torch.arange(length)[None, :]
    hidden = key > position
    if window is not None:
        hidden = hidden | (key <= position - window)
    scores = scores.masked_fill(hidden, -torch.inf)
    total = scores.logsumexp(-1, keepdim=True)
    if sinks is not None:
        total = torch.logaddexp(total, sinks.double()[:, None, None])
    weights = (scores - total).exp()
    return torch.einsum("hnl,hld->nhd", weights, v)
