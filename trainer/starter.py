"""Writes a recipe to start from, and the rows of a built-in task in the form that users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from polygraft.trainer.errors import RecipeError

if TYPE_CHECKING:
    from polygraft.trainer.tasks.task import Row, Task

RECIPE = "run.yaml"
_OWN_DATA = """\
  train: data/rows.jsonl # JSONL, CSV or Parquet, beside this file; or hf:owner/name:file
  split: {validation: 0.1, test: 0.1} # by: FIELD keeps rows of one group together
  # instead of split: validation: and test: with files of their own
  template: "{prompt}" # the prompt; {field} is filled from the row, {{ is a brace
  completion: completion # the field to learn
  # wrap: chat # puts the prompt into the base's chat template"""
_TASK_DATA = """\
  train: data/train.jsonl # replace these made rows by yours, with the same fields
  validation: data/validation.jsonl
  test: data/test.jsonl
  template: {template} # {{field}} is filled from the row
  completion: completion # the field to learn
  wrap: chat # puts the prompt into the base's chat template"""
_TEXT = """\
# One run of `polygraft train`. Every key but `data` has a default; an unknown key is refused.
#
#   polygraft data check run.yaml     what is wrong with the rows, by line
#   polygraft memory run.yaml         what a step will need
#   polygraft train run.yaml          writes runs/<name>-<time>-<hash>/ with report.html in it
#   polygraft push runs/... --promote live     onto a running server, through the gate
version: 1
name: {name} # also the name it is pushed under
seed: 0 # the same seed and recipe give the same adapter, to the byte
base: {{path: "builtin:nano", dtype: fp32}} # or a directory, or a Hugging Face hub id
data:
{data}
method: {{kind: lora, r: 8}} # targets: all-linear, attention, mlp, qv; dora, rslora, layers
# method: {{kind: prompt, virtual_tokens: 20}} # embeddings in front: calls up a skill
# method: {{kind: prefix}} | {{kind: p_tuning}} | and, not served, {{kind: houlsby}}
optim:
  lr: auto # by method and size of the base; the number used is in config.resolved.yaml
  epochs: 4
  batch: 16 # rows per forward; accumulate: 2 makes it twice that per step
eval:
  every: 1 # epochs between validations; the best adapter is kept
  metric: {metric} # rougeL, exact_match or loss; auto: by the length of the answers
  # early_stopping: {{patience: 3}}
  generate: {{rows: 64, samples: 4}}
runtime: {{device: auto}}
output: runs/
"""


def write_starter(directory: Path, task: str | None) -> list[Path]:
    """The paths written, the recipe first. Raises RecipeError when one exists or cannot be."""
    made = _task(task) if task else None
    rows = _rows_of(made) if made else {}
    files = {RECIPE: _recipe(made), **rows}
    for name in files:
        if (directory / name).exists():
            raise RecipeError(
                "exists already; nothing was written.",
                file=str(directory / name),
                hint="Name another directory: polygraft init DIR.",
            )
    written = []
    try:
        (directory / "data").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
            written.append(directory / name)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise RecipeError(
            f"cannot be written: {error.strerror}; nothing was.", file=str(directory)
        ) from None
    return written


def _task(name: str) -> Task:
    from polygraft.trainer.tasks import make_task

    try:
        return make_task(name.removeprefix("builtin:"), seed=0)
    except ValueError as error:
        raise RecipeError(f"{error}.", item="--task") from None


def _recipe(task: Task | None) -> str:
    if task is None:
        return _TEXT.format(name="my-adapter", data=_OWN_DATA, metric="auto")
    segments = task.recipe["segments"]
    template = "".join(s["text"] if "text" in s else f"{{{s['var']}}}" for s in segments)
    data = _TASK_DATA.format(template=json.dumps(template))
    return _TEXT.format(name=task.name, data=data, metric=task.metric)


def _rows_of(task: Task) -> dict[str, str]:
    return {
        f"data/{split}.jsonl": "".join(json.dumps(_row(row)) + "\n" for row in rows)
        for split, rows in task.splits.items()
    }


def _row(row: Row) -> dict[str, str]:
    return {"id": row["id"], **row["variables"], "completion": row["completion"]}
