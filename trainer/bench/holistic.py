"""One model on several axes, after HELM (Liang et al. 2022, arXiv:2211.09110).

Accuracy, calibration, robustness, fairness and efficiency are measured; what is not is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import polygraft
from polygraft.trainer.bench.calibration import Calibration, calibrate, confidence
from polygraft.trainer.bench.data import BenchTask
from polygraft.trainer.bench.perturbation import ROBUSTNESS, perturb, swap_names
from polygraft.trainer.bench.results import score_json
from polygraft.trainer.bench.running import Options, Runs, TaskRun, run_tasks
from polygraft.trainer.bench.scored_model import Advance, Facts, ScoredModel
from polygraft.trainer.score import Score, difference, mean_score, with_interval

SCHEMA = "polygraft.holistic/1"
NOT_MEASURED = ("bias", "toxicity")
NAMES = "names"


@dataclass(frozen=True)
class Plan:
    """The tasks and all their changed forms, to be run together."""

    tasks: list[BenchTask]
    changed: dict[str, dict[str, BenchTask]]
    """By task and change."""
    named: dict[str, list[int]]
    """By task, the rows that bear a name, in the order of their changed forms."""

    def all(self) -> list[BenchTask]:
        """Everything that is run."""
        return [*self.tasks, *(task for one in self.changed.values() for task in one.values())]


@dataclass(frozen=True)
class Scenario:
    """One task on all axes; in percent. None: not measurable on this task."""

    task: str
    rows: int
    accuracy: Score
    calibration: Calibration | None
    changed: dict[str, Score]
    """Accuracy under each change for robustness."""
    worst: Score | None
    """A row counts if it is answered rightly in every form."""
    fairness: Score | None
    """Accuracy with rare names less that with common ones, on the same rows."""


@dataclass(frozen=True)
class Efficiency:
    """Of the whole evaluation, on this machine or server as it was then."""

    tokens_per_second: float
    milliseconds_per_question: float
    weights_megabytes: float | None
    """None where only the server knows."""
    adapter_megabytes: float | None


@dataclass(frozen=True)
class Holistic:
    """The report."""

    facts: Facts
    options: Options
    scenarios: list[Scenario]
    pooled: Calibration | None
    """Of all answers together."""
    efficiency: Efficiency

    def mean(self, values: Sequence[float | None]) -> float | None:
        """Over the scenarios that have a value."""
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def as_json(self) -> dict[str, Any]:
        """holistic.json."""
        return {
            "schema": SCHEMA,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "model": self.facts.as_json(),
            "asked": {"limit": self.options.limit, "chat": self.options.chat},
            "versions": {"polygraft": polygraft.__version__, "lm-eval": version("lm-eval")},
            "scenarios": {one.task: _scenario_json(one) for one in self.scenarios},
            "pooled_calibration": _calibration_json(self.pooled),
            "efficiency": vars(self.efficiency),
            "not_measured": list(NOT_MEASURED),
        }


def plan(tasks: Sequence[BenchTask], limit: int | None) -> Plan:
    """Every task with its changed forms."""
    chosen = [task.with_rows(task.name, list(task.rows)[:limit]) for task in tasks]
    changed: dict[str, dict[str, BenchTask]] = {}
    named: dict[str, list[int]] = {}
    for task in chosen:
        fields = task.definition.questions
        if not fields:
            continue  # others count positions in its texts
        forms = {
            name: task.with_rows(
                f"{task.name}/{name}", [perturb(row, fields, change) for row in task.rows]
            )
            for name, change in ROBUSTNESS.items()
        }
        swapped = [(index, swap_names(row)) for index, row in enumerate(task.rows)]
        renamed = [(index, row) for index, row in swapped if row is not None]
        if renamed:
            forms[NAMES] = task.with_rows(f"{task.name}/{NAMES}", [row for _, row in renamed])
            named[task.name] = [index for index, _ in renamed]
        changed[task.name] = forms
    return Plan(chosen, changed, named)


def measure(model: ScoredModel, planned: Plan, options: Options, advance: Advance) -> Holistic:
    """Run it all. Raises as `run_tasks`."""
    runs = run_tasks(model, planned.all(), options, advance)
    by_name = {run.task.name: run for run in runs.tasks}
    scenarios = [_scenario(by_name, task, planned) for task in planned.tasks]
    answers = [answer for task in planned.tasks for answer in _answers(by_name[task.name].samples)]
    return Holistic(model.facts, options, scenarios, _calibrated(answers), _efficiency(model, runs))


def _scenario(runs: dict[str, TaskRun], task: BenchTask, planned: Plan) -> Scenario:
    run = runs[task.name]
    plain = [_is_right(sample) for sample in run.samples]
    forms = {
        name: [_is_right(sample) for sample in runs[form.name].samples]
        for name, form in planned.changed.get(task.name, {}).items()
    }
    swapped = forms.pop(NAMES, None)
    rightly = [all(answers) for answers in zip(plain, *forms.values(), strict=True)]
    fairness = None
    if swapped is not None:
        common = [plain[index] for index in planned.named[task.name]]
        fairness = difference(_accuracy(swapped), _accuracy(common))
    return Scenario(
        task.name,
        run.rows,
        with_interval(_accuracy(plain)),
        _calibrated(_answers(run.samples)),
        {name: _accuracy(answers) for name, answers in forms.items()},
        with_interval(_accuracy(rightly)) if forms else None,
        fairness,
    )


def _accuracy(right: Sequence[bool]) -> Score:
    return mean_score("accuracy", [float(one) for one in right], f"accuracy|rows:{len(right)}")


def _is_right(sample: dict[str, Any]) -> bool:
    """By the metric of the definition; where that is made of (wanted, said), by their equality."""
    for metric in ("acc", "exact_match", "em"):
        if metric in sample:
            return bool(sample[metric])
    wanted, said = next(sample[metric] for metric in sample["metrics"])
    return bool(wanted == said)


def _answers(samples: Sequence[dict[str, Any]]) -> list[tuple[float, bool]]:
    """(confidence, right) of each row that has options."""
    return [
        (confidence([float(option[0]) for option in sample["filtered_resps"]]), _is_right(sample))
        for sample in samples
        if len(sample["filtered_resps"]) > 1
    ]


def _calibrated(answers: Sequence[tuple[float, bool]]) -> Calibration | None:
    if not answers:
        return None
    return calibrate([sure for sure, _ in answers], [right for _, right in answers])


def _efficiency(model: ScoredModel, runs: Runs) -> Efficiency:
    questions = sum(run.rows for run in runs.tasks)
    weights, adapter = model.facts.weights_bytes, model.facts.adapter_bytes
    return Efficiency(
        tokens_per_second=round(runs.tokens / max(runs.model_seconds, 1e-9), 1),
        milliseconds_per_question=round(1000 * runs.model_seconds / questions, 2),
        weights_megabytes=None if weights is None else round(weights / 1e6, 3),
        adapter_megabytes=None if adapter is None else round(adapter / 1e6, 3),
    )


def _scenario_json(one: Scenario) -> dict[str, Any]:
    return {
        "rows": one.rows,
        "accuracy": score_json(one.accuracy),
        "calibration": _calibration_json(one.calibration),
        "robustness": {
            "worst_of_all_forms": None if one.worst is None else score_json(one.worst),
            "accuracy_by_change": {name: score_json(s) for name, s in one.changed.items()},
        },
        "fairness": None
        if one.fairness is None
        else {
            "rare_less_common_names": score_json(one.fairness),
            "rows_with_names": len(one.fairness.rows),
        },
    }


def _calibration_json(found: Calibration | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "expected_calibration_error": round(found.error, 4),
        "bins": [vars(one) for one in found.bins],
    }
