"""Does one job: trains, asks the arm for its tasks and the base's old skills, adds up costs.

Runs in a process of its own, which keeps the base's old answers from one job to the next.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.compare.jobs import Job
from polygraft.trainer.compare.measured import judged_by, measured
from polygraft.trainer.config import Data, RunConfig
from polygraft.trainer.data import task_examples
from polygraft.trainer.forgetting.general import General, load_general
from polygraft.trainer.progress import Observer
from polygraft.trainer.scoring import Ask, Prompt, best_base_prompt, score_subject
from polygraft.trainer.source import Source, load_source
from polygraft.trainer.tasks.axes import ANSWERS, AXES, make_axis

if TYPE_CHECKING:
    from polygraft.trainer.forgetting.measure import Knowledge
    from polygraft.trainer.forgetting.record import Forgetting
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.methods.adapted import Adapted

SCHEMA = "polygraft.compare.job/1"


def do_job(job: Job, observer: Observer) -> dict[str, Any]:
    """The result of a job as plain data. Raises what training raises; leaves nothing then."""
    import torch

    started, cpu = time.monotonic(), time.process_time()
    threads = torch.get_num_threads()
    # Why: two jobs at a time with two threads each wait for each other, and scoring took ten times
    # as long.
    torch.set_num_threads(job.recipes[0].runtime.threads or threads)
    try:
        record = _ask_base(job) if job.settings.shots is not None else _train(job, observer)
    finally:
        torch.set_num_threads(threads)
    record["cost"]["minutes"] = round((time.monotonic() - started) / 60, 3)
    record["cost"]["cpu_seconds"] = round(time.process_time() - cpu, 1)
    head = {"schema": SCHEMA, "key": job.key, "arm": job.arm, "seed": job.seed}
    return {**head, **record}


def _train(job: Job, observer: Observer) -> dict[str, Any]:
    from polygraft.trainer.local import asker, open_adapter
    from polygraft.trainer.run import train

    run: Path | None = None
    runs: list[str] = []
    seconds = 0.0
    for recipe in job.recipes:
        config = recipe.model_copy(update={"init_from": run}) if run else recipe
        result = train(config, observer, score_test=False)
        run, seconds = result.directory, seconds + result.seconds
        runs.append(run.name)
    assert run is not None
    last = result.config
    opened = open_adapter(run, last.base.path)
    before = _knowledge(last.base.path, job.general) if job.settings.forgetting else None
    adapted = opened.attach()
    ask = asker(opened.base, adapted)
    record = _answers(job, _sources(job, last), ask, as_base=False)
    if before is not None:
        record["forgetting"] = _forgetting(job, opened.base, adapted, before)
    record["cost"] = _cost(run, seconds)
    record["runs"] = runs
    record["method"] = last.method.model_dump(mode="json")
    record["learning_rate"] = last.optim.lr
    return record


def _ask_base(job: Job) -> dict[str, Any]:
    from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer
    from polygraft.trainer.local import asker

    config = job.recipes[0]
    base = load_frozen_base(
        config.base.path, load_tokenizer(config.base.path), dtype="fp32", device="cpu"
    )
    sources = _sources(job, config)
    if job.settings.shots:
        record = _behind_shots(job, base, sources)
    else:
        record = _answers(job, sources, asker(base, None), as_base=True)
    record["cost"] = {"trained_parameters": 0, "adapter_bytes": 0, "training_seconds": 0.0}
    record["runs"] = []
    record["method"] = {"kind": "icl", "shots": job.settings.shots}
    return record


def _behind_shots(job: Job, base: FrozenBase, sources: dict[str, Source]) -> dict[str, Any]:
    """Every task's test split behind solved train rows drawn by the job's seed."""
    from polygraft.trainer.icl import score_in_context
    from polygraft.trainer.icl_asked import asked_base

    assert job.settings.shots is not None
    asked, tasks, contexts = asked_base(base), {}, []
    for name, source in sources.items():
        shots = [job.settings.shots]
        (score,) = score_in_context(asked, source, shots=shots, draws=1, seed=job.seed)
        rows = source.splits.test
        tasks[name] = measured(score.draws[0].subject, judged_by(source), rows)
        contexts.append(
            {
                "prompt_tokens": round(score.prompt_tokens, 1),
                "window": score.window,
                "window_share": round(score.window_share, 1),
                "rows_too_long": round(score.too_long, 2),
                "milliseconds": score.milliseconds,
            }
        )
    return {"tasks": tasks, "axes": {}, "context": contexts[0]}


def _sources(job: Job, config: RunConfig) -> dict[str, Source]:
    """By name, the arm's own task first."""
    limit = config.eval.generate.max_new_tokens
    own = load_source(config.data)
    if limit is not None:
        own = own.with_limit(limit)
    name = (config.data.task or str(Path(config.data.train or "rows").name)).removeprefix(
        "builtin:"
    )
    others = {
        task.removeprefix("builtin:"): load_source(Data(task=task)) for task in job.settings.tasks
    }
    return {name: own, **{key: value for key, value in others.items() if key != name}}


def _answers(job: Job, sources: dict[str, Source], ask: Ask, *, as_base: bool) -> dict[str, Any]:
    """Every task's test split; of the own task also what is new in it, apart."""
    tasks: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for name, source in sources.items():
        metric = judged_by(source)
        prompt = best_base_prompt(source, metric, ask) if as_base else source.prompt
        rows = source.splits.test
        tasks[name] = measured(score_subject(job.arm, prompt, rows, ask), metric, rows)
        if job.settings.axes and name in ANSWERS and not axes:
            axes = {axis: _axis(job, name, axis, prompt, metric, ask) for axis in AXES}
    return {"tasks": tasks, "axes": axes}


def _axis(job: Job, task: str, axis: str, prompt: Prompt, metric: str, ask: Ask) -> dict[str, Any]:
    rows = task_examples(task, axis, make_axis(task, axis))
    return measured(score_subject(job.arm, prompt, rows, ask), metric, rows)


def _forgetting(job: Job, base: FrozenBase, adapted: Adapted, before: Knowledge) -> dict[str, Any]:
    from polygraft.trainer.forgetting.measure import with_change

    found: Forgetting = with_change(
        job.arm, base, adapted, _general(job.general), before, answers_detached=False
    )
    return {
        **found.as_json(),
        "rows": {"before": found.total.before.rows, "attached": found.total.attached.rows},
    }


@cache
def _general(name: str) -> General:
    return load_general(name)


@cache
def _knowledge(base_path: str, general: str) -> Knowledge:
    """What a base that nothing was attached to answers."""
    from polygraft.trainer.forgetting.measure import ask_base
    from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer

    base = load_frozen_base(base_path, load_tokenizer(base_path), dtype="fp32", device="cpu")
    return ask_base(base, _general(general))


def _cost(run: Path, seconds: float) -> dict[str, Any]:
    from polygraft.trainer.run_listing import read_run

    cost = dict(read_run(run).report["cost"])
    return {**cost, "training_seconds": round(seconds, 1)}
