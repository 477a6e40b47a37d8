"""The demo's page: what happened in order, who scored what, and the runs themselves below."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from polygraft.trainer.data import Example
from polygraft.trainer.drawing import svg_text
from polygraft.trainer.forgetting.record import Forgetting
from polygraft.trainer.interpret import Reading, interpret
from polygraft.trainer.report.page import write_page
from polygraft.trainer.report.pages import write_pages
from polygraft.trainer.report.pictures import plot_scores
from polygraft.trainer.reporting import add_scores
from polygraft.trainer.run_directory import READING_FILE
from polygraft.trainer.run_listing import read_run
from polygraft.trainer.scoring import Subject

TITLE = "One base, three adapters: a demonstration of Polygraft"


@dataclass
class Told:
    """One step of the demonstration and what was said about it."""

    title: str
    lines: list[str] = field(default_factory=list)


def write_demo_page(
    target: Path,
    *,
    told: Sequence[Told],
    boards: Mapping[str, Sequence[Subject]],
    runs: Sequence[Path],
    highlights: Sequence[tuple[str, str]],
) -> None:
    """`boards` are subjects side by side by task; `highlights` figures with what they say."""
    from jinja2 import Environment

    source = (files("polygraft.trainer.demo") / "story.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    before = environment.from_string(source).render(
        told=told,
        boards={name: _picture(name, subjects) for name, subjects in boards.items()},
        highlights=highlights,
    )
    write_page([read_run(run) for run in runs], target, title=TITLE, before=before)


def complete_run(
    run: Path, board: Sequence[Subject], rows: Sequence[Example], forgetting: Forgetting | None
) -> None:
    """Put what the server answered into the run's own report, and write that anew."""
    base, shots, *_, adapter = board
    titled = zip((base, shots, adapter), ("base", "few-shot", "adapter"), strict=True)
    subjects = [replace(subject, name=title) for subject, title in titled]
    add_scores(run, subjects, rows, forgetting)
    write_pages(run)


def keep_reading(run: Path) -> Reading:
    """What the soft prompt of a run reads like; also kept in it, for its report."""
    reading = interpret(run, None)
    text = json.dumps(reading.as_json(), ensure_ascii=False)
    (run / READING_FILE).write_text(text, encoding="utf-8")
    return reading


def short(forgetting: Forgetting) -> dict[str, Any]:
    """Forgetting in four numbers."""
    record = forgetting.as_json()
    return {
        **{name: record["all"][name] for name in ("before", "attached", "detached")},
        "detached_bit_equal": record["detached_logits_bit_equal"],
    }


def _picture(name: str, subjects: Sequence[Subject]) -> str:
    buffer = io.StringIO()
    records: list[dict[str, Any]] = [subject.as_json() for subject in subjects]
    for record in records:  # "base, dsum" says the task twice under its heading
        record["subject"] = str(record["subject"]).removesuffix(f", {name}")
    plot_scores(records, buffer, f"{name}: {records[0]['rows']} rows that no training saw")
    return svg_text(buffer)
