"""Runs tasks through lm-eval's own evaluation on rows that are already in memory.

lm-eval would fetch each task's data from the hub; here it is given a data set made of the rows, so
that nothing is asked of any network and nothing is cached outside the process.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from polygraft.trainer.bench.data import BenchTask
from polygraft.trainer.bench.fields import Fields
from polygraft.trainer.bench.scored_model import Advance, ScoredModel
from polygraft.trainer.bench.squad_metrics import available_to_definitions
from polygraft.trainer.bench.suites import Definition, task_folder
from polygraft.trainer.digests import digest
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.rows import Row
from polygraft.trainer.score import Score, mean_score, with_interval

SHOTS_SEED = 1234  # lm-eval's own, so that it shows the same examples


@dataclass(frozen=True)
class Options:
    """How tasks are asked."""

    limit: int | None = None
    """First rows of each task only."""
    shots: int = 0
    chat: bool = False
    """The base's chat template around each question."""


@dataclass(frozen=True)
class TaskRun:
    """What lm-eval measured on one task. `samples` are its records, one per row."""

    task: BenchTask
    scores: list[Score]
    samples: list[dict[str, Any]]

    @property
    def rows(self) -> int:
        """That were asked."""
        return len(self.samples)


@dataclass(frozen=True)
class Runs:
    """All tasks of one evaluation, and what it took."""

    tasks: list[TaskRun]
    cut_texts: int
    """That lost their beginning, because they were longer than the window."""
    tokens: int
    model_seconds: float
    """Spent in the model alone."""


def count_requests(tasks: Sequence[BenchTask], options: Options) -> int:
    """What `advance` will be told in all."""
    return sum(
        _options_of(task.definition.fields, row)
        for task in tasks
        for row in list(task.rows)[: options.limit]
    )


def run_tasks(
    model: ScoredModel, tasks: Sequence[BenchTask], options: Options, advance: Advance
) -> Runs:
    """Raises RecipeError for shots or a chat template that are not there, and what `model` does."""
    if options.chat and not model.facts.has_chat_template:
        raise RecipeError(
            "the base has no chat template.", item="--chat", hint="Leave it out, or --no-chat."
        )
    for task in tasks:
        if options.shots > len(task.shots):
            raise RecipeError(
                f"{task.name} has {len(task.shots)} examples to show, fewer than {options.shots}.",
                item="--shots",
            )
    with _quiet():
        from lm_eval.evaluator import evaluate

        from polygraft.trainer.bench.lm import PolygraftLM

        lm = PolygraftLM(model, advance)
        built = {task.name: _build(task, options) for task in tasks}
        found = evaluate(
            lm=lm,
            task_dict={"tasks": built},
            limit=options.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=options.chat,
        )
    runs = [
        _run_of(task, found["results"][task.name], found["samples"][task.name], options)
        for task in tasks
    ]
    return Runs(runs, lm.cut, lm.tokens, lm.seconds)


def definition_sha256(definition: Definition) -> str:
    """Of the definition with what it includes, the same on every machine."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(task_folder() / definition.yaml, resolve_func=False)
    return digest(repr(sorted(config.items())).replace(str(task_folder()), ""))


def _build(task: BenchTask, options: Options) -> Any:
    """lm-eval's task: the installed definition, our rows."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = task.definition
    rows = {definition.test_split: list(task.rows)}
    if options.shots:
        rows["shots"] = list(task.shots)
    data = DatasetDict({split: Dataset.from_list(some) for split, some in rows.items()})
    with available_to_definitions():
        config = load_yaml(task_folder() / definition.yaml)
    for key in ("tag", "task_alias", "dataset_name", "dataset_path", "group"):
        config.pop(key, None)
    config |= {
        "task": task.name,
        "custom_dataset": lambda **_: data,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": definition.test_split,
        "fewshot_split": "shots" if options.shots else None,
        "num_fewshot": options.shots,
    }
    built = ConfigurableTask(config=config)
    built.set_fewshot_seed(seed=SHOTS_SEED)
    return built


def _run_of(
    task: BenchTask, results: dict[str, Any], samples: list[dict[str, Any]], options: Options
) -> TaskRun:
    samples = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    scores = []
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith("_stderr") and isinstance(value, int | float):
            scores.append(_score(task, metric, float(value), samples, options))
    return TaskRun(task, scores, samples)


def _score(
    task: BenchTask, metric: str, value: float, samples: list[dict[str, Any]], options: Options
) -> Score:
    """lm-eval's value in percent; with an interval where it is the mean over rows."""
    signature = (
        f"lm-eval:{version('lm-eval')}|{task.definition.yaml}@"
        f"{definition_sha256(task.definition)[:12]}|data:{task.sha256[:12]}|rows:{len(samples)}|"
        f"shots:{options.shots}|chat:{'yes' if options.chat else 'no'}"
    )
    rows = [sample.get(metric) for sample in samples]
    numbers = [float(row) for row in rows if isinstance(row, int | float)]
    if len(numbers) == len(rows) and abs(sum(numbers) / len(numbers) - value) < 1e-6:
        return with_interval(mean_score(metric, numbers, signature))
    return Score(metric, 100.0 * value, signature)


def _options_of(fields: Fields, row: Row) -> int:
    """Requests of one question."""
    if "entities" in row:
        return len(set(row["entities"]))
    if "multiple_choice_targets" in row:
        return len(row["multiple_choice_targets"])
    labels = [kind for kind in fields.values() if kind.startswith("label ")]
    return int(labels[0].removeprefix("label ")) if labels else 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's and datasets' own bars and warnings, which are about other ways to run."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
