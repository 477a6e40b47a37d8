"""The first line of a report: is the adapter better than its base?"""

from __future__ import annotations

from dataclasses import dataclass

from polygraft.trainer.run_listing import RunRecord


@dataclass(frozen=True)
class Verdict:
    """What the paired difference says about the metric that the run was judged by."""

    text: str
    tone: str
    """good, bad or open."""


def verdict(run: RunRecord) -> Verdict:
    """By the interval of the paired difference, never by two numbers alone."""
    found = run.report.get("difference", {}).get(run.metric)
    base, adapter = run.score("base"), run.score("adapter")
    if found is None or found.get("ci95") is None or base is None or adapter is None:
        return Verdict("The test split was not scored by the metric of the run.", "open")
    low, high = found["ci95"]
    rows = run.report["test"][0]["rows"]
    numbers = (
        f"{run.metric} {base:.1f} to {adapter:.1f}, a difference of {found['value']:+.1f} "
        f"[{low:+.1f}, {high:+.1f}] (95 % paired bootstrap, {rows} rows)"
    )
    if low > 0:
        return Verdict(f"Better than its base: {numbers}.", "good")
    if high < 0:
        return Verdict(f"Worse than its base: {numbers}.", "bad")
    return Verdict(f"Not to be told apart from its base: {numbers}.", "open")
