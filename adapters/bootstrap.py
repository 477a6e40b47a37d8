"""The paired bootstrap: how far a mean difference over the same rows may be chance.

Rows of one group (sentences of one dialogue, say) are drawn together, because they do not vary
independently (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0  # fixed: the same scores always get the same verdict
_CHUNK = 1 << 20  # draws at a time, to bound memory


def mean_interval(
    differences: Sequence[float],
    groups: Sequence[int] = (),
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile bounds of the mean of `differences` under resampling of whole groups.

    `groups` names the group of each row; empty: each row is one. ValueError without rows.
    """
    values = np.asarray(differences, dtype=np.float64)  # [rows]
    if values.size == 0:
        raise ValueError("there are no rows")
    of_row = (
        np.arange(values.size) if not len(groups) else np.unique(groups, return_inverse=True)[1]
    )
    totals = np.bincount(of_row, weights=values)  # [groups]
    sizes = np.bincount(of_row).astype(np.float64)  # [groups]
    random = np.random.default_rng(SEED)
    means = np.empty(resamples)
    step = max(1, _CHUNK // totals.size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, totals.size, (count, totals.size))
        means[start : start + count] = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = 100.0 * (1.0 - confidence) / 2.0
    lower, upper = np.percentile(means, [tail, 100.0 - tail])
    return float(lower), float(upper)
