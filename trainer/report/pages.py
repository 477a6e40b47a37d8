"""What a finished run writes for people: pictures, the page, the model card."""

from __future__ import annotations

from pathlib import Path

from polygraft.trainer.report.card import CARD_FILE, card_text
from polygraft.trainer.report.page import write_page
from polygraft.trainer.report.pictures import plot_confusion, plot_scores
from polygraft.trainer.run_listing import RunRecord, read_run

PAGE_FILE = "report.html"


def write_pages(directory: Path) -> None:
    """scores.png, confusion.png where answers are labels, MODEL_CARD.md and report.html."""
    run = read_run(directory)
    subjects = run.report["test"]
    plot_scores(subjects, directory / "scores.png", run.name)
    classification = _classification(run)
    if classification is not None:
        plot_confusion(classification, directory / "confusion.png", f"{run.name}, adapter")
    (directory / CARD_FILE).write_text(card_text(run), encoding="utf-8")
    write_page([run], directory / PAGE_FILE)


def _classification(run: RunRecord) -> dict[str, object] | None:
    """Of the last subject, the adapter; None where references are texts."""
    for subject in reversed(run.report["test"]):
        if "classification" in subject:
            return dict(subject["classification"])
    return None
