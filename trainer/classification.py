"""Precision, recall, F1 and confusion of answers that are labels.

An answer counts as a label when it equals one but for outer white space. Any other is invalid: it
is wrong, and never taken for the label that it resembles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polygraft.trainer.score import Score, mean_score

MAX_LABELS = 20
"""Distinct references up to which answers are labels, if no labels are given."""
RULE = "match:strip,exact|other answers invalid"


@dataclass(frozen=True)
class ClassScores:
    """One label; `support` rows have it. Percent."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Classification:
    """What was said for what. `confusion[i][j]` rows of label i were answered with label j; the
    last column counts invalid answers."""

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        """Rows."""
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        """Rows answered with their label."""
        return sum(row[index] for index, row in enumerate(self.confusion))

    @property
    def invalid(self) -> int:
        """Rows answered with no label."""
        return sum(row[-1] for row in self.confusion)

    def by_class(self) -> list[ClassScores]:
        """In the order of `labels`; 0 where nothing was predicted or expected."""
        scores = []
        for index, label in enumerate(self.labels):
            right = self.confusion[index][index]
            said = sum(row[index] for row in self.confusion)
            support = sum(self.confusion[index])
            scores.append(ClassScores(label, *_rates(right, said, support), support))
        return scores

    def scores(self) -> list[Score]:
        """Accuracy, macro and micro averages and the share of invalid answers."""
        classes = self.by_class()
        values = {
            f"macro_{name}": sum(getattr(one, name) for one in classes) / len(classes)
            for name in ("precision", "recall", "f1")
        }
        micro = _rates(self.correct, self.total - self.invalid, self.total)
        values |= dict(zip(("micro_precision", "micro_recall", "micro_f1"), micro, strict=True))
        values["invalid_rate"] = 100.0 * self.invalid / self.total
        shown = ("macro_f1", "invalid_rate")
        signature = f"labels:{len(self.labels)}|{RULE}"
        return [
            Score(name, value, f"{name}|{signature}", is_detail=name not in shown)
            for name, value in values.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        return {
            "labels": list(self.labels),
            "confusion": [list(row) for row in self.confusion],
            "classes": [asdict(one) for one in self.by_class()],
        }


def classify(
    texts: Sequence[str], references: Sequence[str], labels: Sequence[str] = ()
) -> Classification | None:
    """The classification of answers, or None where references are texts, not labels.

    Without `labels` they are the distinct references, if those are few and repeat.
    """
    wanted = [reference.strip() for reference in references]
    labels = tuple(dict.fromkeys(label.strip() for label in labels)) or tuple(sorted(set(wanted)))
    known = set(labels)
    if len(labels) > min(MAX_LABELS, len(wanted) // 2) or not known.issuperset(wanted):
        return None
    column = {label: index for index, label in enumerate(labels)}
    counts = Counter(
        (column[reference], column.get(text.strip(), len(labels)))
        for text, reference in zip(texts, wanted, strict=True)
    )
    size = range(len(labels))
    return Classification(
        labels, tuple(tuple(counts[i, j] for j in range(len(labels) + 1)) for i in size)
    )


def accuracy(texts: Sequence[str], references: Sequence[str]) -> Score:
    """Share of answers that are the label."""
    pairs = zip(texts, references, strict=True)
    rows = [float(text.strip() == reference.strip()) for text, reference in pairs]
    return mean_score("accuracy", rows, f"accuracy|{RULE}")


def _rates(right: int, said: int, wanted: int) -> tuple[float, float, float]:
    """Precision, recall and F1 in percent."""
    precision = 100.0 * right / said if said else 0.0
    recall = 100.0 * right / wanted if wanted else 0.0
    f1 = 200.0 * right / (said + wanted) if said + wanted else 0.0
    return precision, recall, f1
