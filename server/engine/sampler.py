"""Choose the next token of each row. Randomness is keyed by (seed, position) only, so a draw does
not depend on neighbours, batch size or preemption.

Order: temperature, top-k, top-p, draw. Equal logits: the lowest token id wins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polygraft.server.engine.messages import Sampling, TokenLogprob

Row = npt.NDArray[np.float32]  # [vocab_size] logits

_CANDIDATES = 1024  # tokens looked at before a full sort is needed for top-p


def sample(logits: Row, sampling: Sampling, *, position: int) -> int:
    """Choose one token. `position` counts the tokens before it (prompt and output)."""
    if sampling.temperature == 0.0:
        return int(np.argmax(logits))
    return _draw(logits, sampling, position)


def token_logprob(logits: Row, token_id: int, num_top: int) -> TokenLogprob:
    """One token's log-probability, its rank, and the `num_top` most likely tokens."""
    total = log_sum_exp(logits)
    own = logits[token_id]
    above = np.count_nonzero(logits > own) + np.count_nonzero(logits[:token_id] == own)
    top = _largest(logits, num_top) if num_top else ()
    return TokenLogprob(
        token_id,
        float(own) - total,
        rank=int(above) + 1,
        top=tuple((int(token), float(logits[token]) - total) for token in top),
    )


def log_sum_exp(logits: Row) -> float:
    """log(sum(exp(logits))), without overflow."""
    top = float(logits.max())
    return top + float(np.log(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


def _draw(logits: Row, sampling: Sampling, position: int) -> int:
    scaled = logits.astype(np.float64) / sampling.temperature
    order, weights = _kept(scaled, sampling)
    cumulative = np.cumsum(weights)
    # Philox is counter-based (Salmon et al., SC 2011): one independent draw per (seed, position).
    bits = np.random.Philox(key=sampling.seed & (2**64 - 1), counter=[position, 0, 0, 0])
    point = np.random.Generator(bits).random() * cumulative[-1]
    index = int(np.searchsorted(cumulative, point, side="right"))
    return int(order[min(index, len(order) - 1)])


def _kept(
    scaled: npt.NDArray[np.float64], sampling: Sampling
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Token ids and unnormalised weights that top-k, then top-p leave, most likely first."""
    weights = np.exp(scaled - scaled.max())
    if sampling.top_k == 0 and sampling.top_p >= 1.0:
        return np.arange(len(weights)), weights
    if sampling.top_k:
        order = _largest(scaled, sampling.top_k)
        total = weights[order].sum()
    else:
        total = weights.sum()
        order = _largest(scaled, _CANDIDATES)
        if weights[order].sum() < sampling.top_p * total:
            order = _largest(scaled, len(scaled))  # flat distribution: the full sort is needed
    kept = weights[order]
    # A token stays while the mass before it is below top_p, so the first always stays.
    count = max(1, int((np.cumsum(kept) - kept < sampling.top_p * total).sum()))
    return order[:count], kept[:count]


def _largest(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest values, largest first, ties by lower index."""
    if count < len(values):
        edge = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= edge)
    else:
        candidates = np.arange(len(values))
    order = candidates[np.lexsort((candidates, -values[candidates]))]
    return order[:count]
