"""Scores of one subject on one set of rows as plain data that can be kept and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polygraft.trainer.data import Example, rows_sha256
from polygraft.trainer.scoring import Subject
from polygraft.trainer.source import Source

KEPT_ROWS = ("rougeL", "exact_match", "accuracy", "stop_rate")
"""Metrics whose row values are kept, for intervals over seeds and for paired differences."""


def measured(subject: Subject, metric: str, rows: Sequence[Example]) -> dict[str, Any]:
    """Values of every metric, row values of the main ones, and what tells equal rows."""
    groups = {group: number for number, group in enumerate(dict.fromkeys(r.group for r in rows))}
    return {
        "metric": metric,
        "rows_sha256": rows_sha256(rows),
        "groups": [groups[row.group] for row in rows],
        "values": {
            score.metric: None if score.value is None else round(score.value, 3)
            for score in subject.scores
            if not score.is_detail
        },
        "rows": {
            score.metric: [round(value, 2) for value in score.rows]
            for score in subject.scores
            if score.metric in KEPT_ROWS and score.rows
        },
    }


def judged_by(source: Source) -> str:
    """The metric of a source; ROUGE-L for one whose rows were validated by loss."""
    return source.metric if source.metric in KEPT_ROWS else "rougeL"
