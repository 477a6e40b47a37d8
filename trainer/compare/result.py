"""What the jobs of an arm add up to: estimates over seeds and rows, costs, what was forgotten."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polygraft.trainer.compare.intervals import Estimate, estimate
from polygraft.trainer.compare.recipe import Arm
from polygraft.trainer.score import MIN_GROUPS

SCHEMA = "polygraft.compare/1"
AUTO, MEAN = "auto", "mean"
OLD_LOST = "old_skills_lost"
BIT_EQUAL = "detached_bit_equal"


@dataclass(frozen=True)
class Rows:
    """One metric of an arm: `values` [seeds][rows] in percent, and which rows they are of."""

    values: list[list[float]]
    groups: list[int]
    identity: str
    """Equal for equal rows."""

    def estimate(self) -> Estimate:
        """The mean."""
        return estimate(self.values, self.drawn_groups)

    @property
    def drawn_groups(self) -> list[int]:
        """Empty where there are too few groups to draw from."""
        return self.groups if len(set(self.groups)) >= MIN_GROUPS else []


@dataclass(frozen=True)
class ArmResult:
    """The finished jobs of one arm; `records` is empty where all failed."""

    name: str
    arm: Arm
    records: list[dict[str, Any]]
    problems: list[str]

    @property
    def tasks(self) -> list[str]:
        """The own task first."""
        return list(self.records[0]["tasks"]) if self.records else []

    @property
    def own_task(self) -> str | None:
        """What it was trained for."""
        return self.tasks[0] if self.tasks else None

    def metric_of(self, task: str) -> str:
        """The task's own metric."""
        return str(self.records[0]["tasks"][task]["metric"])

    def rows(self, metric: str = AUTO, task: str | None = None) -> Rows | None:
        """Row values of a metric, of every seed; None where it was not measured."""
        if not self.records:
            return None
        if metric == OLD_LOST:
            return self._old_lost()
        if metric == BIT_EQUAL:
            return self._bit_equal()
        if task == MEAN:
            return self._over_tasks(metric)
        return _rows(
            [record["tasks"].get(task or self.own_task) for record in self.records], metric
        )

    def axis(self, name: str, metric: str = AUTO) -> Rows | None:
        """Of the rows in which only that is new."""
        return _rows([record["axes"].get(name) for record in self.records], metric)

    @property
    def axes(self) -> list[str]:
        """Those that were measured."""
        return list(self.records[0]["axes"]) if self.records else []

    def value(self, metric: str) -> float | None:
        """Mean over seeds of a metric of the own task that has no row values, as BLEU."""
        task = self.own_task
        found = [record["tasks"][task]["values"].get(metric) for record in self.records]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) if known else None

    def cost(self, name: str) -> float | None:
        """Mean over seeds of a number of the costs."""
        found = [record["cost"].get(name) for record in self.records]
        known = [float(value) for value in found if value is not None]
        return statistics.fmean(known) if known else None

    @property
    def memory(self) -> Mapping[str, Any] | None:
        """Predicted by kind and measured, of the one job that accounted for it."""
        accounts = (record["cost"].get("memory") for record in self.records)
        return next((account for account in accounts if account), None)

    @property
    def fallen(self) -> list[str]:
        """Skills that fell with most seeds."""
        falls = [
            record["forgetting"]["fallen"] for record in self.records if "forgetting" in record
        ]
        names = dict.fromkeys(name for fall in falls for name in fall)
        return [n for n in names if sum(n in fall for fall in falls) * 2 > len(falls)]

    def _old_lost(self) -> Rows | None:
        found = [record["forgetting"] for record in self.records if "forgetting" in record]
        if not found:
            return None
        values = [
            [b - a for b, a in zip(one["rows"]["before"], one["rows"]["attached"], strict=True)]
            for one in found
        ]
        return Rows(values, [], f"general {found[0]['general']} {len(values[0])}")

    def _bit_equal(self) -> Rows | None:
        found = [record["forgetting"] for record in self.records if "forgetting" in record]
        values = [[100.0 * one["detached_logits_bit_equal"]] for one in found]
        return Rows(values, [], BIT_EQUAL) if found else None

    def _over_tasks(self, metric: str) -> Rows | None:
        """Rows of all tasks, each task with the same weight in the mean."""
        parts = [self.rows(metric, task) for task in self.tasks]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            return None
        longest = max(len(part.values[0]) for part in known)
        if any(len(part.values[0]) != longest for part in known):
            return None  # the built-in tasks have equally many rows
        values = [
            [value for part in known for value in part.values[seed]]
            for seed in range(len(self.records))
        ]
        return Rows(values, [], " ".join(part.identity for part in known))


def _rows(found: Sequence[Mapping[str, Any] | None], metric: str) -> Rows | None:
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    name = known[0]["metric"] if metric == AUTO else metric
    if any(name not in one["rows"] for one in known):
        return None
    values = [list(one["rows"][name]) for one in known]
    return Rows(values, list(known[0]["groups"]), f"{name} {known[0]['rows_sha256']}")
