"""Whether a model is as often right as it is sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence."""

    count: int
    confidence: float
    """Their mean; 0 where there is none."""
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599).

    Mean over the answers of the distance between accuracy and confidence of their bin, 0 to 1.
    """

    error: float
    bins: list[Bin]


def confidence(logprobs: Sequence[float]) -> float:
    """Of the likeliest option, its share among the options: softmax of their log-likelihoods."""
    shares = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    return float(shares.max() / shares.sum())


def calibrate(confidences: Sequence[float], right: Sequence[bool]) -> Calibration:
    """Over `BINS` bins of equal width, each without its lower bound. ValueError without answers."""
    if not confidences:
        raise ValueError("there are no answers")
    sure = np.asarray(confidences, dtype=np.float64)
    hits = np.asarray(right, dtype=np.float64)
    index = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    safe = np.maximum(counts, 1)
    mean_sure = np.bincount(index, weights=sure, minlength=BINS) / safe
    mean_right = np.bincount(index, weights=hits, minlength=BINS) / safe
    error = float((counts * np.abs(mean_right - mean_sure)).sum() / counts.sum())
    bins = [
        Bin(int(count), float(one), float(other))
        for count, one, other in zip(counts, mean_sure, mean_right, strict=True)
    ]
    return Calibration(error, bins)
