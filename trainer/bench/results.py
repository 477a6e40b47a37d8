"""Results of a suite: as JSON with everything that tells one from another, as a table, on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polygraft
from polygraft.trainer.bench.running import Options, Runs, TaskRun, definition_sha256
from polygraft.trainer.bench.scored_model import Facts
from polygraft.trainer.digests import digest
from polygraft.trainer.score import Score, mean_score, with_interval

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "polygraft.bench/1"


@dataclass(frozen=True)
class SuiteResult:
    """One suite on one model."""

    suite: str
    facts: Facts
    options: Options
    runs: Runs
    missing: Sequence[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """results.json."""
        mean = self.mean()
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "model": self.facts.as_json(),
            "asked": {
                "limit": self.options.limit,
                "shots": self.options.shots,
                "chat": self.options.chat,
            },
            "versions": {"polygraft": polygraft.__version__, "lm-eval": version("lm-eval")},
            "tasks": {run.task.name: _task_json(run) for run in self.runs.tasks},
            "mean_accuracy": None if mean is None else score_json(mean),
            "missing": list(self.missing),
            "texts_cut_to_the_window": self.runs.cut_texts,
            "seconds": round(self.seconds, 2),
        }

    def mean(self) -> Score | None:
        """Accuracy over all questions, as lm-eval sums up MMLU; None for other suites."""
        if not self.suite.endswith(("mmlu", "bigbench")) or len(self.runs.tasks) < 2:
            return None
        found = [score for run in self.runs.tasks for score in run.scores if score.metric == "acc"]
        rows = [row / 100.0 for score in found for row in score.rows]
        if not rows:
            return None
        return with_interval(mean_score("acc", rows, f"mean over {len(rows)} questions"))


def write_result(result: SuiteResult, folder: Path) -> Path:
    """A new directory with results.json and samples.jsonl, complete or not at all."""
    record = result.as_json()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"{result.suite}-{stamp}-{digest(json.dumps(record, sort_keys=True))[:8]}"
    work = folder / f".{name}"
    try:
        work.mkdir(parents=True)
        _write_json(work / "results.json", record)
        with (work / "samples.jsonl").open("w", encoding="utf-8") as file:
            for run in result.runs.tasks:
                for sample in run.samples:
                    file.write(json.dumps(_sample(run, sample), ensure_ascii=False) + "\n")
        os.replace(work, folder / name)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder / name


def result_table(result: SuiteResult) -> Table:
    """One line per task and metric, each with its 95 % interval where it is a mean over rows."""
    from rich.table import Table

    what = result.facts.adapter or "base alone"
    title = f"{result.suite}: {result.facts.base}, {what[:19]}"
    table = Table(title=title, title_justify="left")
    for heading in ("task", "rows", "metric", "value"):
        table.add_column(heading, justify="right" if heading in ("rows", "value") else "left")
    for run in result.runs.tasks:
        for score in run.scores:
            table.add_row(run.task.name, str(run.rows), score.metric, shown(score))
    mean = result.mean()
    if mean is not None:
        table.add_row("all questions", str(len(mean.rows)), "acc", shown(mean), style="bold")
    return table


def shown(score: Score) -> str:
    """A value with its interval."""
    if score.value is None:
        return "n/a"
    if score.interval is None:
        return f"{score.value:.1f}"
    return f"{score.value:.1f} [{score.interval[0]:.1f}, {score.interval[1]:.1f}]"


def _task_json(run: TaskRun) -> dict[str, Any]:
    return {
        "rows": run.rows,
        "rows_in_file": len(run.task.rows),
        "scores": {score.metric: score_json(score) for score in run.scores},
        "definition": run.task.definition.yaml,
        "definition_sha256": definition_sha256(run.task.definition),
        "data": run.task.source,
        "data_sha256": run.task.sha256,
    }


def score_json(score: Score) -> dict[str, Any]:
    return {
        "value": None if score.value is None else round(score.value, 4),
        "ci95": None if score.interval is None else [round(bound, 2) for bound in score.interval],
        "signature": score.signature,
    }


def _sample(run: TaskRun, sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": run.task.name,
        "row": sample["doc_id"],
        "asked": sample["arguments"][0][0],
        "options": [arguments[1] for arguments in sample["arguments"]],
        "answers": sample["filtered_resps"],
        "target": sample["target"],
        **{metric: sample[metric] for metric in sample["metrics"]},
    }


def _write_json(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
