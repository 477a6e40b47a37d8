"""Whether the figures make a target's sentence true, and by which number. Loads no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polygraft.trainer.compare.intervals import Estimate, estimate_difference
from polygraft.trainer.compare.recipe import Target
from polygraft.trainer.compare.result import ArmResult, Rows


@dataclass(frozen=True)
class Verdict:
    """One target, judged."""

    say: str
    reached: bool
    figure: str
    """The number with its interval, or why there is none."""

    def as_json(self) -> dict[str, Any]:
        """For compare.json."""
        return {"target": self.say, "reached": self.reached, "figure": self.figure}

    def line(self) -> str:
        """For the terminal."""
        return f"{'reached' if self.reached else 'NOT REACHED'}  {self.say}: {self.figure}"


def judge(target: Target, results: Mapping[str, ArmResult]) -> Verdict:
    """The verdict on a target; not reached where a figure it needs is missing."""
    if target.spread:
        return _judge_spread(target, results)
    assert target.of is not None
    own = results[target.of].rows(target.metric, target.task)
    if own is None:
        return _missing(target, target.of)
    if target.share_of is not None:
        return _judge_share(target, own, results)
    if target.over is None:
        return _verdict(target, own.estimate())
    other = results[target.over].rows(target.metric, target.task)
    if other is None:
        return _missing(target, target.over)
    if own.identity != other.identity:
        return Verdict(target.say, False, "not measured on the same rows")
    found = estimate_difference(own.values, other.values, own.drawn_groups)
    sides = f"{own.estimate().value:.1f} - {other.estimate().value:.1f}"
    return _verdict(target, found, f"{sides} = {found}")


def _judge_share(target: Target, own: Rows, results: Mapping[str, ArmResult]) -> Verdict:
    assert target.share_of is not None
    whole = results[target.share_of].rows(target.metric, target.task)
    if whole is None:
        return _missing(target, target.share_of)
    one, all_ = own.estimate(), whole.estimate()
    if all_.value <= 0:
        return Verdict(target.say, False, f"{one} of {all_}: there is nothing to take a share of")
    share = 100.0 * one.value / all_.value
    return _verdict(target, Estimate(share, share, share), f"{one} of {all_} = {share:.0f} %")


def _judge_spread(target: Target, results: Mapping[str, ArmResult]) -> Verdict:
    found = {name: results[name].rows(target.metric, target.task) for name in target.spread}
    for name, rows in found.items():
        if rows is None:
            return _missing(target, name)
    known = {name: rows for name, rows in found.items() if rows is not None}
    best, worst = extremes(known)
    difference = estimate_difference(
        known[best].values,
        known[worst].values,
        known[best].drawn_groups,
        confidence=corrected(len(known)),
    )
    means = ", ".join(f"{name} {rows.estimate().value:.1f}" for name, rows in known.items())
    return _verdict(target, difference, f"{best} over {worst} {difference} ({means})")


def extremes(rows: Mapping[str, Rows]) -> tuple[str, str]:
    """Names of the best and the worst mean."""
    means = {name: one.estimate().value for name, one in rows.items()}
    return max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])


def corrected(count: int) -> float:
    """Confidence of one comparison so that all pairs of `count` hold at 95 % (Bonferroni).

    Why: the best and the worst of many arms differ by chance alone.
    """
    return 1.0 - 0.05 / max(1, math.comb(count, 2))


def not_to_be_told_apart(rows: Mapping[str, Rows]) -> list[str]:
    """The arms that the best one is not shown to be above, itself left out."""
    best, _ = extremes(rows)
    confidence = corrected(len(rows))
    return [
        name
        for name, one in rows.items()
        if name != best
        and estimate_difference(
            rows[best].values, one.values, rows[best].drawn_groups, confidence=confidence
        ).low
        <= 0
    ]


def _verdict(target: Target, found: Estimate, figure: str | None = None) -> Verdict:
    reached = (
        (target.at_least is None or found.value >= target.at_least)
        and (target.at_most is None or found.value <= target.at_most)
        and (not target.shown or found.excludes_zero)
    )
    wanted = [
        text
        for text in (
            f"at least {target.at_least:g}" if target.at_least is not None else "",
            f"at most {target.at_most:g}" if target.at_most is not None else "",
            "an interval without 0" if target.shown else "",
        )
        if text
    ]
    return Verdict(target.say, reached, f"{figure or found}; wanted {', '.join(wanted)}")


def _missing(target: Target, name: str) -> Verdict:
    return Verdict(target.say, False, f"{name} has no such figure")


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line about all."""
    reached = sum(verdict.reached for verdict in verdicts)
    return f"{reached} of {len(verdicts)} targets reached"
