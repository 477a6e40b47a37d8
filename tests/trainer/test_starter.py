"""`polygraft init` writes a recipe that loads, and rows that are the task's."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.config import Data, RunConfig
from polygraft.trainer.recipe import load_recipe
from polygraft.trainer.source import load_source
from polygraft.trainer.tasks import TASKS


def init(*arguments: str | Path) -> int:
    return CliRunner().invoke(app, ["init", *map(str, arguments)]).exit_code


@pytest.mark.parametrize("task", TASKS)
def test_a_task_written_out_is_the_built_in_one(task: str, tmp_path: Path) -> None:
    assert init(tmp_path, "--task", task) == 0
    written = load_source(load_recipe(tmp_path / "run.yaml").data)
    builtin = load_source(Data(task=f"builtin:{task}"))
    for split, rows in builtin.splits.named().items():
        found = written.splits.named()[split]
        assert [row.content for row in found] == [row.content for row in rows]
    assert written.prompt["segments"] == builtin.prompt["segments"]
    assert written.prompt["wrap"] == builtin.prompt["wrap"]
    assert load_recipe(tmp_path / "run.yaml").eval.metric == builtin.metric


def test_your_own_rows_go_where_it_says(tmp_path: Path) -> None:
    assert init(tmp_path / "new") == 0
    config = load_recipe(tmp_path / "new" / "run.yaml")
    assert config.data.train == str(tmp_path / "new" / "data" / "rows.jsonl")
    assert (tmp_path / "new" / "data").is_dir()
    defaults = RunConfig(data=config.data)
    for section in ("base", "method", "optim", "eval", "runtime", "output", "seed"):
        assert getattr(config, section) == getattr(defaults, section), section


def test_every_key_that_is_a_comment_is_one(tmp_path: Path) -> None:
    assert init(tmp_path) == 0
    for line in (tmp_path / "run.yaml").read_text().splitlines():
        for method in line.split("|"):
            if "kind:" in method and "{" in method:
                text = method[method.index("{") : method.index("}") + 1]
                RunConfig(data=Data(task="builtin:dsum"), method=yaml.safe_load(text))


def test_nothing_is_overwritten_and_unknown_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    assert init(tmp_path) == 2
    assert (tmp_path / "run.yaml").read_text() == "mine"
    assert init(tmp_path / "x", "--task", "nonsense") == 2
    assert not (tmp_path / "x").exists()
