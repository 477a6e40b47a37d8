"""Recipes: what is accepted, and what the errors say."""

from pathlib import Path
from typing import Any

import pytest

from polygraft.trainer.config import Lora, SoftPrompt
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.recipe import load_recipe, load_resolved, parse_recipe
from polygraft.trainer.run_directory import RunDirectory

TASK = {"task": "builtin:dsum"}


def test_the_least_recipe_is_a_task() -> None:
    config = parse_recipe({"data": TASK})
    assert config.base.path == "builtin:nano"
    assert isinstance(config.method, Lora)


def test_the_method_is_chosen_by_its_kind() -> None:
    config = parse_recipe({"data": TASK, "method": {"kind": "prompt", "virtual_tokens": 50}})
    assert config.method == SoftPrompt(virtual_tokens=50)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"optm": {}}, "optm: unknown key, did you mean 'optim'?"),
        ({"optim": {"epoch": 1}}, "optim.epoch: unknown key, did you mean 'epochs'?"),
        ({"optim": {"learning_rate": 1}}, "optim.learning_rate: unknown key, did you mean 'lr'?"),
        (
            {"method": {"kind": "lora", "lora_alpha": 1}},
            "method.lora_alpha: unknown key, did you mean 'alpha'?",
        ),
        (
            {"method": {"kind": "prompt", "r": 8}},
            "method.r: unknown key. Known: init, init_text, kind, virtual_tokens.",
        ),
        ({"method": {"kind": "loro"}}, "unknown method 'loro', did you mean 'lora'?"),
        (
            {"method": {"r": 8}},
            "method.kind: is missing. Known: lora, prompt, prefix, p_tuning,",
        ),
        ({"optim": {"lr": -1}}, "optim.lr: Input should be greater than 0, found -1"),
        (
            {"eval": {"early_stopping": {"patiense": 1}}},
            "eval.early_stopping.patiense: unknown key, did you mean 'patience'?",
        ),
        ({"data": {}}, "data: give either task: builtin:<name> or train: <file>"),
        ({"data": {"train": "a"}}, "give validation and test files, or split"),
        ({"data": {"task": "dsum"}}, "task must be builtin:<name>, found 'dsum'"),
        ({"data": {**TASK, "split": {}}}, "task brings its own splits"),
        ({"data": {**TASK, "system": "x"}}, "system needs wrap: chat"),
        (
            {"data": {"train": "a", "split": {"validation": 0.5, "test": 0.5}}},
            "data.split: validation + test must stay below 1",
        ),
    ],
)
def test_a_mistake_is_named_with_the_way_out(section: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"data": TASK} | section)
    assert says in str(caught.value)


def test_overrides_are_read_as_yaml_and_make_sections(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {task: builtin:dsum}\n")
    overrides = ["optim.lr=5e-3", "method.kind=lora", "method.targets=[q_proj, v_proj]", "seed=7"]
    config = load_recipe(path, overrides)
    assert config.optim.lr == 0.005
    assert config.method == Lora(targets=("q_proj", "v_proj"))
    assert config.seed == 7


@pytest.mark.parametrize("override", ["optim.lr", "=3", "seed.x=1"])
def test_a_broken_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {task: builtin:dsum}\nseed: 1\n")
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(path, [override])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' twice"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_data_files_are_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {train: rows.jsonl, split: {}}\n")
    assert load_recipe(path).data.train == str(tmp_path / "rows.jsonl")


def test_data_of_the_hub_are_no_files_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text('data: {train: "hf:me/rows:train.jsonl", split: {}}\n')
    assert load_recipe(path).data.train == "hf:me/rows:train.jsonl"


def test_a_written_recipe_reads_back_the_same(tmp_path: Path) -> None:
    config = parse_recipe({"data": TASK, "output": str(tmp_path), "eval": {"early_stopping": {}}})
    directory = RunDirectory.create(config)
    directory.write_config(config)
    assert load_resolved(directory.work) == config
