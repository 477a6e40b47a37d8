"""Comparisons are read strictly: a wrong name is named, with the nearest right one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.compare.jobs import make_jobs
from polygraft.trainer.compare.recipe import (
    load_comparison,
    load_preset,
    merged,
    parse_comparison,
    presets,
)
from polygraft.trainer.errors import RecipeError


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arm": {}}, "arm: unknown key, did you mean 'arms'?"),
        ({"arms": {}}, "arms"),
        ({"arms": {"a": {"recipes": {}}}}, "did you mean 'recipe'?"),
        ({"arms": {"a": {"recipe": {"optim": {"epoch": 1}}}}}, "arm a: optim.epoch: unknown key"),
        ({"arms": {"a": {"shots": 1, "forgetting": True}}}, "trains nothing"),
        ({"targets": [{"say": "x", "of": "lor", "at_least": 1}]}, "did you mean 'lora'?"),
        ({"targets": [{"say": "x", "of": "lora"}]}, "at_least, at_most or shown"),
        ({"targets": [{"say": "x", "at_least": 1}]}, "of or spread"),
        ({"targets": [{"say": "x", "of": "lora", "at_leest": 1}]}, "did you mean 'at_least'?"),
    ],
)
def test_what_is_wrong_is_named(make_document: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_comparison(make_document(**changes))
    assert says in str(caught.value)


def test_every_preset_is_valid_and_its_targets_speak_of_its_arms(tmp_path: Path) -> None:
    assert {"all", "quick"} <= set(presets())
    for name in presets():
        comparison = load_preset(name)
        jobs = make_jobs(comparison, tmp_path)
        assert {job.arm for job in jobs} == set(comparison.arms)
        assert len({job.key for job in jobs}) == len(jobs)


def test_sections_are_laid_over_each_other_but_methods_are_replaced() -> None:
    under = {"method": {"kind": "lora", "r": 8}, "optim": {"lr": 1, "epochs": 2}}
    over = {"method": {"kind": "full"}, "optim": {"epochs": 3}}
    expected = {"method": {"kind": "full"}, "optim": {"lr": 1, "epochs": 3}}
    assert merged(under, over) == expected
    assert under["optim"] == {"lr": 1, "epochs": 2}


def test_files_lie_beside_the_comparison(make_document: Any, tmp_path: Path) -> None:
    document = make_document(general="old.jsonl")
    document["shared"]["data"]["train"] = "rows.jsonl"
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(document))
    comparison = load_comparison(path)
    (recipe,) = comparison.recipes_of("lora")
    assert recipe.data.train == str(tmp_path / "rows.jsonl")
    assert comparison.general == str(tmp_path / "old.jsonl")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--preset"),
        (["--preset", "al"], "did you mean 'all'?"),
        (["--preset", "quick", "--arm", "lorra"], "did you mean 'lora'?"),
        (["--preset", "quick", "--seeds", "a"], "--seeds"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_words_are_refused(words: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["compare", *words])
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


def test_arms_are_listed_without_training() -> None:
    result = CliRunner().invoke(app, ["compare", "--preset", "quick", "--list"])
    assert result.exit_code == 0
    assert "lora" in result.stdout
    assert "target: LoRA is better than its base" in result.stdout
