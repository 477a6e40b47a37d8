"""From one row of logits to one token: temperature, top-k, top-p, min-p, draw.

Order and meaning are those of transformers' TemperatureLogitsWarper, TopKLogitsWarper,
TopPLogitsWarper and MinPLogitsWarper. Randomness is keyed by (seed, position) only, so a draw does
not depend on neighbours, batch size or preemption.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polygraft.server.engine.messages import Sampling

Row = npt.NDArray[np.float32]  # [vocab_size] logits
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_TAIL = np.float32(2.0**-17)  # lighter tokens, against the heaviest, are looked at only if needed
_RUN = 256  # weights that are summed at once to find a place among many


def draw(logits: Row, sampling: Sampling, *, position: int) -> int:
    """One token by chance; `position` counts the tokens before it (prompt and output)."""
    ids, weights = kept(logits, sampling)
    place = _locate(weights, uniform(sampling.seed, position))
    return place if ids is None else int(ids[place])


def uniform(seed: int, position: int) -> float:
    """A number of [0, 1) for a position. Philox is counter-based (Salmon et al., SC 2011)."""
    bits = np.random.Philox(key=seed & (2**64 - 1), counter=[position, 0, 0, 0])
    return np.random.Generator(bits).random()


def kept(logits: Row, sampling: Sampling) -> tuple[Ids | None, Row]:
    """The tokens that may be drawn, ids ascending (None: all), and their unnormalised weights.

    The heaviest token weighs 1. At the edge of top-k all equal tokens stay, as in transformers; at
    that of top-p the lowest ids stay, where transformers' choice follows from an unstable sort.
    """
    weights = _weights(logits, sampling.temperature)
    if not sampling.top_k and sampling.top_p >= 1.0 and not sampling.min_p:
        return None, weights
    ids = _candidates(weights, sampling)
    if sampling.top_k:
        # By logits: weights of different logits may be equal after rounding.
        ids = ids[_is_top_k(logits[ids], sampling.top_k)]
    if sampling.top_p < 1.0:
        total = weights[ids].sum() if sampling.top_k else weights.sum()
        ids = ids[_is_top_p(weights[ids], sampling.top_p * float(total))]
    if sampling.min_p:
        ids = ids[weights[ids] >= sampling.min_p]
    return ids, weights[ids]


def _weights(logits: Row, temperature: float) -> Row:
    weights: Row = logits - logits.max()
    with np.errstate(over="ignore"):  # a tiny temperature takes all others to -inf, as it should
        np.divide(weights, np.float32(temperature), out=weights)
    np.exp(weights, out=weights)
    return weights


def _candidates(weights: Row, sampling: Sampling) -> Ids:
    """The heavy tokens if whatever top-k and top-p keep is among them, else all possible ones."""
    heavy = np.flatnonzero(weights > _TAIL)
    if sampling.top_k:
        is_enough = len(heavy) >= sampling.top_k
    elif sampling.top_p < 1.0:
        is_enough = bool(weights[heavy].sum() >= sampling.top_p * weights.sum())
    else:
        is_enough = bool(sampling.min_p > _TAIL)
    return heavy if is_enough else np.flatnonzero(weights)


def _is_top_k(logits: Row, count: int) -> Mask:
    least = len(logits) - min(count, len(logits))
    mask: Mask = logits >= np.partition(logits, least)[least]
    return mask


def _is_top_p(weights: Row, mass: float) -> Mask:
    """A token stays while the mass of the heavier ones is below `mass`; the first always stays."""
    ordered = np.sort(weights)[::-1]
    before = np.cumsum(ordered, dtype=np.float64) - ordered
    count = max(1, int(np.searchsorted(before, mass)))
    edge = ordered[count - 1]
    stays: Mask = weights > edge
    equal = np.flatnonzero(weights == edge)
    stays[equal[: count - np.count_nonzero(stays)]] = True
    return stays


def _locate(weights: Row, point: float) -> int:
    """The index at which the running sum of the weights passes `point`, a part of their sum."""
    starts = np.arange(0, len(weights), _RUN)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    place = point * float(sums[-1])
    run = min(int(np.searchsorted(sums, place, side="right")), len(starts) - 1)
    before = float(sums[run - 1]) if run else 0.0
    inside = weights[starts[run] : starts[run] + _RUN]
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), place - before, side="right"))
    # Rounding may put the point behind the last weight: then it is the last one that has any.
    last = int(np.flatnonzero(inside)[-1]) if index >= len(inside) else index
    return int(starts[run]) + last
