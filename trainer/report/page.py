"""Turns what runs wrote into the page. Loads no model and asks no network."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from polygraft.trainer.drawing import svg_text
from polygraft.trainer.errors import DataError
from polygraft.trainer.report.examples import choose_examples
from polygraft.trainer.run_listing import RunRecord

CHOSEN = 5
"""Best, worst and random answers each."""


@dataclass(frozen=True)
class Verdict:
    """The first line of a run: is the adapter better than its base?"""

    text: str
    tone: str
    """good, bad or open."""


def write_page(runs: Sequence[RunRecord], target: Path) -> None:
    """Write the page about complete runs. Raises DataError for one that is not."""
    from jinja2 import Environment

    for run in runs:
        if not run.is_complete:
            raise DataError("the run is not complete.", file=str(run.directory))
    source = (files("polygraft.trainer.report") / "page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    text = template.render(runs=[_run(run) for run in runs])
    target.write_text(text, encoding="utf-8")


def verdict(run: RunRecord) -> Verdict:
    """What the paired difference says about the metric that the run was judged by."""
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


def _run(run: RunRecord) -> dict[str, Any]:
    subjects = run.report["test"]
    return {
        "name": run.directory.name,
        "verdict": verdict(run),
        "report": run.report,
        "method": run.config["method"]["kind"],
        "metric": run.metric,
        "subjects": subjects,
        "metrics": list(subjects[0]["scores"]) if subjects else [],
        "servable": run.servable,
        "examples": choose_examples(_predictions(run.directory), CHOSEN),
        "memory": (run.report.get("cost") or {}).get("memory"),
        "loss": _loss_picture(run.directory),
        "forgetting": run.report.get("forgetting"),
        "forgetting_picture": _forgetting_picture(run),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
    }


def _predictions(directory: Path) -> list[dict[str, Any]]:
    path = directory / "predictions.test.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _loss_picture(directory: Path) -> str:
    """The loss curve as SVG, ready to stand in the page."""
    from polygraft.trainer.plots import plot_loss

    path = directory / "metrics.jsonl"
    if not path.is_file():
        return ""
    buffer = io.StringIO()
    plot_loss(path, buffer, directory.name)
    return svg_text(buffer)


def _forgetting_picture(run: RunRecord) -> str:
    """Bars of the old skills as SVG; empty where they were not asked."""
    from polygraft.trainer.forgetting.view import plot_forgetting

    record = run.report.get("forgetting")
    if not record:
        return ""
    buffer = io.StringIO()
    plot_forgetting([record], buffer, "old skills")
    return svg_text(buffer)
