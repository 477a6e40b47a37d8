"""Writes the page and the pictures of a comparison: one file that needs no network."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from polygraft.trainer.compare.pictures import plot_parameters, plot_scores
from polygraft.trainer.compare.result import ArmResult
from polygraft.trainer.compare.run import Outcome
from polygraft.trainer.compare.store import write_atomically
from polygraft.trainer.compare.verdicts import summary
from polygraft.trainer.compare.view import cells, memory_cells
from polygraft.trainer.drawing import svg_text
from polygraft.trainer.forgetting.view import plot_forgetting
from polygraft.trainer.memory import KINDS

PAGE = "compare.html"


def write_page(outcome: Outcome) -> Path:
    """`compare.html` and its pictures as PNG, in the comparison's folder; the page's path."""
    from jinja2 import Environment

    source = (files("polygraft.trainer.compare") / "page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    scored = [result for result in outcome.results.values() if result.rows() is not None]
    pictures = {}
    if scored:
        for name, plot in (("scores", plot_scores), ("parameters", plot_parameters)):
            plot(outcome, outcome.folder / f"{name}.png")
            buffer = io.StringIO()
            plot(outcome, buffer)
            pictures[name] = svg_text(buffer)
    target = outcome.folder / PAGE
    write_atomically(target, template.render(**_content(outcome, pictures)))
    return target


def _content(outcome: Outcome, pictures: dict[str, str]) -> dict[str, Any]:
    results = list(outcome.results.values())
    groups = {
        group: _grid([cells(result) for result in results if result.arm.group == group])
        for group in dict.fromkeys(result.arm.group for result in results)
    }
    return {
        "made": outcome.as_json()["made"],
        "name": outcome.comparison.name,
        "seeds": outcome.comparison.seeds,
        "verdicts": outcome.verdicts,
        "summary": summary(outcome.verdicts),
        "tone": "good" if all(verdict.reached for verdict in outcome.verdicts) else "bad",
        "groups": groups,
        "pictures": pictures,
        "forgetting": _forgetting(outcome, results),
        "axes": _axes(results),
        "memory": [memory_cells(result) for result in results if result.memory],
        "memory_headings": ["arm", *KINDS, "peak", "measured", "off by"],
        "recipe": yaml.safe_dump(
            outcome.comparison.model_dump(mode="json", exclude_defaults=True),
            sort_keys=False,
            allow_unicode=True,
        ),
    }


def _grid(rows: list[dict[str, str]]) -> dict[str, Any]:
    headings = list(dict.fromkeys(key for row in rows for key in row))
    return {"headings": headings, "rows": [[row.get(key, "") for key in headings] for row in rows]}


def _axes(results: list[ArmResult]) -> dict[str, Any] | None:
    found = [result for result in results if result.axes]
    if not found:
        return None
    axes = found[0].axes
    rows = []
    for result in found:
        scores = [result.axis(axis) for axis in axes]
        rows.append([result.name, *(str(s.estimate()) if s else "-" for s in scores)])
    return {"headings": ["arm", *axes], "rows": rows}


def _forgetting(outcome: Outcome, results: list[ArmResult]) -> str:
    """Bars of the first seed of each arm that was asked for the old skills."""
    records = [
        {**record["forgetting"], "change": result.name}
        for result in results
        for record in result.records[:1]
        if "forgetting" in record
    ]
    if not records:
        return ""
    plot_forgetting(records, outcome.folder / "forgetting.png", outcome.comparison.name)
    buffer = io.StringIO()
    plot_forgetting(records, buffer, outcome.comparison.name)
    return svg_text(buffer)
