"""Choose the next token of each row. Randomness is keyed by (seed, position) only, so a draw does
not depend on neighbours, batch size or preemption.

Order: temperature, top-k, top-p, draw. Equal logits: the lowest token id wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polygraft.server.engine.messages import Sampling

Row = npt.NDArray[np.float32]  # [vocab_size] logits

_CANDIDATES = 1024  # tokens looked at before a full sort is needed for top-p


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token and, if asked for, its log-probability under the unmodified distribution."""

    token_id: int
    logprob: float | None


def sample(logits: Row, sampling: Sampling, *, position: int, logprobs: bool) -> Sampled:
    """Choose one token. `position` counts the tokens before it (prompt and output)."""
    if sampling.temperature == 0.0:
        token = int(np.argmax(logits))
    else:
        token = _draw(logits, sampling, position)
    return Sampled(token, token_logprob(logits, token) if logprobs else None)


def token_logprob(logits: Row, token_id: int) -> float:
    """Natural logarithm of the softmax probability of one token."""
    return float(logits[token_id]) - log_sum_exp(logits)


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


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest values, largest first, ties by lower index."""
    if count < len(values):
        edge = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= edge)
    else:
        candidates = np.arange(len(values))
    order = candidates[np.lexsort((candidates, -values[candidates]))]
    return order[:count]
