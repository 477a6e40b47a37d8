"""One measured number, with the rows it is the mean of and how far chance may move it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

RESAMPLES = 2000
"""Of an interval that is shown; a gate draws more."""
MIN_GROUPS = 20
"""With fewer groups than that, their resampling says nothing, and rows are drawn instead."""


@dataclass(frozen=True)
class Score:
    """One metric over a split. `value` is a percentage (but for perplexity), or None where it
    would mean nothing."""

    metric: str
    value: float | None
    signature: str
    rows: tuple[float, ...] = ()
    """Per row, in percent, where the value is their mean."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap bounds."""
    is_detail: bool = False
    """Shown when asked for."""


def mean_score(
    metric: str, rows: Sequence[float], signature: str, *, is_detail: bool = False
) -> Score:
    """The score of row values in 0..1."""
    percent = tuple(100.0 * float(row) for row in rows)
    mean = 100.0 * sum(rows) / len(rows)
    return Score(metric, mean, signature, percent, None, is_detail)


def with_interval(score: Score, groups: Sequence[str] = ()) -> Score:
    """The score with its interval, rows of one group drawn together; as it is without rows."""
    from polygraft.adapters.bootstrap import mean_interval

    if not score.rows:
        return score
    bounds = mean_interval(score.rows, group_numbers(groups), resamples=RESAMPLES)
    return replace(score, interval=bounds)


def difference(better: Score, worse: Score, groups: Sequence[str] = ()) -> Score | None:
    """The mean of the differences row by row, with its interval; None where rows are not known."""
    if not better.rows or len(better.rows) != len(worse.rows):
        return None
    rows = tuple(a - b for a, b in zip(better.rows, worse.rows, strict=True))
    signature = f"{better.signature}|paired difference"
    return with_interval(Score(better.metric, sum(rows) / len(rows), signature, rows), groups)


def group_numbers(groups: Sequence[str]) -> list[int]:
    """A number per row by its group; empty where there are too few groups to draw from."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return [numbers[group] for group in groups] if len(numbers) >= MIN_GROUPS else []
