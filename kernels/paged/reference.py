"""Paged attention in plain torch: same arguments, same result; what the kernel is held to.

It goes tile by tile and computes in float32 at least, rounding once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polygraft.kernels.paged.plan import PagedPlan


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: PagedPlan,
    *,
    num_tiles: int,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[T, H, D_v] of the rows that the first `num_tiles` tiles hold; other rows are undefined.

    q: [T, H, D]; keys: [Hkv, cells, D]; values: [Hkv, cells, D_v]; cell c holds position c % block
    size of block c // block size. window: key j is seen from position i iff j > i - window; None:
    all. softcap: scores become softcap * tanh(score / softcap). sinks: [H], the score of one more
    key whose value is zero.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty(q.shape[0], q.shape[1], values.shape[2])
    size = plan.capacity.block_size
    offsets = torch.arange(size, device=q.device)
    for entry, row, count, position in plan.tiles[:num_tiles].tolist():
        rows, length = slice(row, row + count), position + count
        first = 0 if window is None else max(0, position - window + 1)
        if count == 0:  # may hold anything else of an earlier step
            continue
        if length <= 0:  # a row of padding
            out[rows] = 0
            continue
        blocks = plan.blocks[entry : entry - (-length // size)].long()
        cells = (blocks[:, None] * size + offsets).view(-1)[first:length]
        mask = _mask(position, count, first, window, q.device, dtype)
        k, v = keys[:, cells].to(dtype), values[:, cells].to(dtype)
        grouped = q[rows].transpose(0, 1).reshape(k.shape[0], -1, count, q.shape[2]).to(dtype)
        scores = grouped @ k[:, None].transpose(-1, -2) * scaling  # [Hkv, group, count, keys]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores += mask
        if sinks is not None:
            sink = sinks.to(dtype).view(k.shape[0], -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., : len(cells)]
        out[rows] = (weights @ v[:, None]).flatten(0, 1).transpose(0, 1).to(q.dtype)
    return out


def _mask(
    position: int,
    count: int,
    first: int,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """[count, keys], added to the scores; keys from position `first` on."""
    query = torch.arange(position, position + count, device=device)[:, None]
    key = torch.arange(first, position + count, device=device)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
