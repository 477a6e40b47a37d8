"""Turns what runs wrote into the page. Loads no model and asks no network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from polygraft.trainer.drawing import svg_text
from polygraft.trainer.errors import DataError
from polygraft.trainer.report.examples import answers_of, choose_examples
from polygraft.trainer.report.pictures import SHOWN_METRICS, plot_reading, plot_scores
from polygraft.trainer.report.verdict import verdict
from polygraft.trainer.run_directory import JOURNAL, READING_FILE
from polygraft.trainer.run_listing import RunRecord

CHOSEN = 5
"""Best, worst and random answers each."""
_HEADINGS = {
    "worst": "The worst answers",
    "best": "The best answers",
    "random": "Answers drawn at random",
}


def write_page(
    runs: Sequence[RunRecord], target: Path, *, title: str = "", before: str = ""
) -> None:
    """Write the page about complete runs. Raises DataError for one that is not.

    `title` and `before`, which is HTML, stand above the runs: a story that they are part of.
    """
    from jinja2 import Environment

    for run in runs:
        if not run.is_complete:
            raise DataError("the run is not complete.", file=str(run.directory))
    folder = files("polygraft.trainer.report")
    source, style = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html.j2", "page.css")
    )
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(
        runs=[_run(run) for run in runs], style=style, title=title, before=before
    )
    target.write_text(text, encoding="utf-8")


def _run(run: RunRecord) -> dict[str, Any]:
    subjects = run.report["test"]
    measured = list(subjects[0]["scores"]) if subjects else []
    return {
        "name": run.name,
        "verdict": verdict(run),
        "report": run.report,
        "cost": run.report.get("cost") or {},
        "method": run.config["method"]["kind"],
        "metric": run.metric,
        "subjects": subjects,
        "main_metrics": [name for name in measured if name in SHOWN_METRICS],
        "other_metrics": [name for name in measured if name not in SHOWN_METRICS],
        "scores": _picture(lambda out: plot_scores(subjects, out, "scores")),
        "servable": run.servable,
        "examples": _examples(run.directory),
        "memory": (run.report.get("cost") or {}).get("memory"),
        "warnings": run.report.get("warnings", []),
        "forgetting": run.report.get("forgetting"),
        "loss": _loss_picture(run),
        "reading": _json(run.directory / READING_FILE),
        "reading_picture": _reading_picture(run),
        "pushes": _json_lines(run.directory / JOURNAL),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
    }


def _examples(directory: Path) -> list[dict[str, Any]]:
    """Parts of the page: heading and rows, each with its answers marked word by word."""
    chosen = choose_examples(_json_lines(directory / "predictions.test.jsonl"), CHOSEN)
    return [
        {
            "heading": _HEADINGS[kind],
            "rows": [{**row, "answers": answers_of(row)} for row in chosen[kind]],
        }
        for kind in ("worst", "random", "best")
        if chosen.get(kind)
    ]


def _loss_picture(run: RunRecord) -> str:
    from polygraft.trainer.plots import plot_loss

    path = run.directory / "metrics.jsonl"
    if not path.is_file():
        return ""
    return _picture(lambda out: plot_loss(path, out, run.name))


def _reading_picture(run: RunRecord) -> str:
    reading = _json(run.directory / READING_FILE)
    if not reading:
        return ""
    return _picture(lambda out: plot_reading(reading, out, "nearest tokens of the vocabulary"))


def _picture(draw: Callable[[io.StringIO], object]) -> str:
    """SVG, ready to stand in the page; empty where there was nothing to draw."""
    buffer = io.StringIO()
    draw(buffer)
    return svg_text(buffer) if buffer.getvalue() else ""


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
