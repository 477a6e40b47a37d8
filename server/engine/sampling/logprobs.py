"""Log-probabilities under the model's own distribution, before anything of `Sampling`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polygraft.server.engine.messages import TokenLogprob
from polygraft.server.engine.sampling.draw import Ids, Row


def token_logprob(
    logits: Row, token_id: int, num_top: int, *, wanted: Sequence[int] = ()
) -> TokenLogprob:
    """One token's log-probability, its rank, and the `num_top` most likely or `wanted` tokens."""
    total = log_sum_exp(logits)
    own = logits[token_id]
    above = np.count_nonzero(logits > own) + np.count_nonzero(logits[:token_id] == own)
    top = wanted or largest(logits, num_top)
    return TokenLogprob(
        token_id,
        float(own) - total,
        rank=int(above) + 1,
        top=tuple((int(token), float(logits[token]) - total) for token in top),
    )


def log_sum_exp(logits: Row) -> float:
    """log(sum(exp(logits))), without overflow."""
    top = logits.max()
    return float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))


def largest(values: Row, count: int) -> Ids:
    """Indices of the `count` largest values, largest first, equal ones by lower index."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    least = len(values) - min(count, len(values))
    candidates = np.flatnonzero(values >= np.partition(values, least)[least])
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]
