"""Means over seeds and rows, with intervals that know of both.

Two-level bootstrap (Efron and Tibshirani 1993): a resample draws seeds, and rows, or whole groups
of rows, which are the same for all seeds. With three seeds it knows little of how far a fourth one
may be off: read the intervals as that of these seeds and any rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
SEED = 0

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and the bounds that chance may move it within."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Shown to be above or below 0."""
        return self.low > 0 or self.high < 0

    def as_json(self) -> dict[str, object]:
        """Percent."""
        return {"value": round(self.value, 2), "ci95": [round(self.low, 2), round(self.high, 2)]}

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def estimate(
    rows: Sequence[Sequence[float]], groups: Sequence[int] = (), *, confidence: float = 0.95
) -> Estimate:
    """The mean of `rows` [seeds][rows] with its interval. ValueError without rows."""
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"rows must be [seeds][rows], found shape {values.shape}")
    random = np.random.default_rng(SEED)
    seeds = _weights(random, values.shape[0], RESAMPLES)  # [resamples, seeds]
    drawn = _row_weights(random, values.shape[1], groups)  # [resamples, rows]
    means = np.einsum("bs,sr,br->b", seeds, values, drawn, optimize=True)
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def estimate_difference(
    one: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    groups: Sequence[int] = (),
    *,
    confidence: float = 0.95,
) -> Estimate:
    """How far `one` is above `other`, row by row, and seed by seed where both have the same number.

    Otherwise each seed of the longer is compared with the mean over seeds of the other. ValueError
    where they were not measured on the same rows.
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"rows differ: {a.shape} and {b.shape}")
    if len(a) != len(b):
        a, b = (a, b.mean(0, keepdims=True)) if len(a) > len(b) else (a.mean(0, keepdims=True), b)
    return estimate((a - b).tolist(), groups, confidence=confidence)


def _weights(random: np.random.Generator, count: int, resamples: int) -> Matrix:
    """How often each of `count` is drawn, as shares that sum to 1: [resamples, count]."""
    drawn = random.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    return drawn.astype(np.float64) / count


def _row_weights(random: np.random.Generator, rows: int, groups: Sequence[int]) -> Matrix:
    if not len(groups):
        return _weights(random, rows, RESAMPLES)
    of_row = np.unique(np.asarray(groups), return_inverse=True)[1]
    weights = _weights(random, int(of_row.max()) + 1, RESAMPLES)[:, of_row]
    shares: Matrix = weights / weights.sum(axis=1, keepdims=True)
    return shares
