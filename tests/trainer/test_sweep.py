"""A grid over a recipe: its points, what is refused, and an honest best."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.sweep import make_sweep, parse_axis


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, toy_file: Path) -> Path:
    path = tmp_path / "toy.yaml"
    document: dict[str, Any] = {
        "name": "toy",
        "base": {"path": str(tiny_base)},
        "data": {"train": str(toy_file), "split": {}},
        "method": {"kind": "lora", "r": 2},
        "optim": {"epochs": 1, "lr": 0.02, "batch": 32},
        "eval": {"generate": {"rows": 2, "max_new_tokens": 4}},
        "runtime": {"account_memory": False},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_grid_has_every_combination_once(recipe: Path) -> None:
    axes = [parse_axis("method.r=2,4"), parse_axis("optim.lr=0.01,1e-3"), parse_axis("data.rows=8")]
    sweep = make_sweep(recipe, axes, ["optim.batch=8"], (0, 1))
    assert list(sweep.arms) == [f"r={r},lr={lr},rows=8" for r in (2, 4) for lr in ("0.01", "0.001")]
    (point,) = sweep.recipes_of("r=4,lr=0.001,rows=8")
    assert (point.method.r, point.optim.lr, point.data.rows, point.optim.batch) == (4, 1e-3, 8, 8)  # type: ignore[union-attr]
    layers = make_sweep(recipe, [parse_axis("method.layers=[0],[0, -1]")], [], (0,))
    assert list(layers.arms) == ["layers=0", "layers=0.m1"]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ("method.rr=2,4", "method.rr: unknown key"),
        ("method.r", "key=value"),
        ("method.r=2,2", "twice"),
        ("method.r=0,2", "greater than 0"),
        ("seed.x=1,2", "seed"),
        ("method.kind=lora,fool", "did you mean 'full'?"),
    ],
)
def test_a_point_that_is_no_recipe_is_refused(recipe: Path, over: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_sweep(recipe, [parse_axis(over)], [], (0,))
    assert says in str(caught.value)


def test_a_sweep_is_resumed_and_names_its_best(recipe: Path, tmp_path: Path) -> None:
    words = ["sweep", str(recipe), "--over", "method.r=1,2", "--seeds", "0", "--parallel", "1"]
    words += ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    arms = json.loads(result.stdout)["arms"]
    assert [arm["arm"] for arm in arms] == ["r=1", "r=2"]
    assert arms[1]["cost"]["trained_parameters"] == 2 * arms[0]["cost"]["trained_parameters"]
    assert "best: r=" in result.stderr
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    more = [*words[:3], "method.r=1,2,3", *words[4:]]
    again = CliRunner().invoke(app, more)
    assert again.exit_code == 0, again.output
    assert "2 jobs are done already" in again.stderr
    assert "best: r=" in again.stdout


def test_there_has_to_be_something_to_sweep(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["sweep", str(recipe)])
    assert (result.exit_code, "--over" in result.stderr) == (2, True)
