"""A comparison from recipe to files: what is done is kept, the rest is done, then judged."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polygraft
from polygraft.trainer.compare.jobs import Job, make_jobs
from polygraft.trainer.compare.pool import Monitor, run_jobs
from polygraft.trainer.compare.recipe import Comparison
from polygraft.trainer.compare.result import OLD_LOST, SCHEMA, ArmResult, Rows
from polygraft.trainer.compare.store import Store, write_atomically
from polygraft.trainer.compare.verdicts import Verdict, judge
from polygraft.trainer.errors import Interrupted

FILE = "compare.json"


@dataclass(frozen=True)
class Outcome:
    """What a comparison found."""

    comparison: Comparison
    folder: Path
    results: dict[str, ArmResult]
    """By arm."""
    verdicts: list[Verdict]
    minutes: float
    """Of this call; what was kept from an earlier one cost nothing."""
    kept: int
    """Jobs that an earlier call had finished."""

    def as_json(self) -> dict[str, Any]:
        """For compare.json and `--json`."""
        return {
            "schema": SCHEMA,
            "name": self.comparison.name,
            "made": {
                "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "polygraft": polygraft.__version__,
                "torch": version("torch"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "minutes": round(self.minutes, 2),
                "jobs_kept_from_before": self.kept,
            },
            "arms": [_arm_json(result) for result in self.results.values()],
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
        }


def run_comparison(
    comparison: Comparison, folder: Path, *, parallel: int, monitor: Monitor
) -> Outcome:
    """Do what is not done yet; write `compare.json` beside the jobs and their runs.

    Raises RecipeError for a folder that cannot be used, Interrupted on Ctrl-C: finished jobs stay.
    """
    started = time.monotonic()
    store = Store(folder)
    jobs = make_jobs(comparison, store.runs)
    with store.opened():
        records = {job.key: record for job in jobs if (record := store.read(job)) is not None}
        kept = len(records)
        problems: dict[str, str] = {}
        todo = [job for job in jobs if job.key not in records]
        monitor.begin(todo, kept)
        try:
            for ended in run_jobs(todo, parallel, monitor):
                if ended.record is None:
                    problems[ended.job.key] = ended.problem or "failed"
                else:
                    store.write(ended.record)
                    records[ended.job.key] = ended.record
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(
                f"stopped; {len(records)} of {len(jobs)} jobs are done and kept in {folder}.",
                hint="The same command goes on from there.",
            ) from None
        results = _results(comparison, jobs, records, problems)
        verdicts = [judge(target, results) for target in comparison.targets]
        minutes = (time.monotonic() - started) / 60
        outcome = Outcome(comparison, folder, results, verdicts, minutes, kept)
        text = json.dumps(outcome.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / FILE, text + "\n")
    return outcome


def _results(
    comparison: Comparison,
    jobs: Sequence[Job],
    records: dict[str, dict[str, Any]],
    problems: dict[str, str],
) -> dict[str, ArmResult]:
    results = {}
    for name, arm in comparison.arms.items():
        keys = [job.key for job in jobs if job.arm == name]
        results[name] = ArmResult(
            name,
            arm,
            [records[key] for key in keys if key in records],
            [problems[key] for key in keys if key in problems],
        )
    return results


def _arm_json(result: ArmResult) -> dict[str, Any]:
    """Estimates and costs; the row values stay in the jobs' files."""
    tasks = {
        task: {
            "metric": result.metric_of(task),
            "scores": {
                metric: rows.estimate().as_json()
                for metric in result.records[0]["tasks"][task]["rows"]
                if (rows := result.rows(metric, task)) is not None
            },
        }
        for task in result.tasks
    }
    costs = ("trained_parameters", "adapter_bytes", "training_seconds", "minutes", "cpu_seconds")
    lost = result.rows(OLD_LOST)
    return {
        "arm": result.name,
        "group": result.arm.group,
        "method": result.records[0]["method"] if result.records else None,
        "seeds": [record["seed"] for record in result.records],
        "tasks": tasks,
        "axes": {axis: _axis_json(result.axis(axis)) for axis in result.axes},
        "bleu": result.value("bleu") if result.records else None,
        "old_skills_lost": None if lost is None else lost.estimate().as_json(),
        "fallen": result.fallen,
        "detached_bit_equal": _all_bit_equal(result),
        "cost": {name: result.cost(name) for name in costs},
        "memory": result.memory,
        "context": result.records[0].get("context") if result.records else None,
        "problems": result.problems,
        "runs": [run for record in result.records for run in record["runs"]],
    }


def _axis_json(rows: Rows | None) -> dict[str, Any] | None:
    return None if rows is None else rows.estimate().as_json()


def _all_bit_equal(result: ArmResult) -> bool | None:
    found = [
        bool(record["forgetting"]["detached_logits_bit_equal"])
        for record in result.records
        if "forgetting" in record
    ]
    return all(found) if found else None
