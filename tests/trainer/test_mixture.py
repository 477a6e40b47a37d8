"""Mixtures: rate x cap, the forms of rows, and that nothing held out is trained on."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polygraft.adapters.manifest import parse_manifest
from polygraft.trainer.base.general_rows import mix_rows, training_rows
from polygraft.trainer.checked_data import check_data
from polygraft.trainer.config import Data, Ingredient, RunConfig
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.mixture import draw_portions, held_out_rows
from polygraft.trainer.recipe import parse_recipe
from polygraft.trainer.run import train
from polygraft.trainer.source import load_source

MakeConfig = Callable[..., RunConfig]
DSUM = Data(task="builtin:dsum")


def drawn(seed: int = 0, **settings: Any) -> list[str]:
    (portion,) = draw_portions([Ingredient(**settings)], DSUM, seed)
    return [row.content for _, row in portion.rows]


@pytest.mark.parametrize(
    ("rate", "cap", "rows", "distinct"),
    [(1.0, None, 600, 600), (1.0, 100, 100, 100), (0.5, 100, 50, 50), (2.5, 20, 50, 20)],
)
def test_a_source_gives_rate_times_its_capped_rows(
    rate: float, cap: int | None, rows: int, distinct: int
) -> None:
    found = drawn(task="builtin:route", rate=rate, cap=cap)
    assert (len(found), len(set(found))) == (rows, distinct)
    if rate > 2:
        assert set(Counter(found).values()) == {2, 3}


def test_the_draw_goes_by_the_seed() -> None:
    route = {"task": "builtin:route", "cap": 50}
    assert drawn(**route) == drawn(**route)
    assert drawn(**route) != drawn(seed=1, **route)


def test_rows_come_from_train_splits_alone() -> None:
    splits = load_source(Data(task="builtin:route")).splits
    train_rows = {row.content for row in splits.train}
    assert set(drawn(task="builtin:route")) == train_rows
    held_out = held_out_rows(Ingredient(task="builtin:route", cap=50), seed=0)
    contents = {row.content for _, row in held_out.rows}
    assert contents <= {row.content for row in splits.validation}


def test_old_skills_are_replayed_but_never_those_that_score_a_base() -> None:
    replayed = {row.prompt for row in training_rows("replay", 340)}
    assert len(replayed) == 340
    assert Counter(row.skill for row in training_rows("replay", 340)).most_common()[-1][1] >= 15
    assert not replayed & {row.prompt for row in mix_rows()}
    found = [json.loads(content) for content in drawn(task="builtin:mix", cap=30)]
    assert {row["variables"]["prompt"] for row in found} <= {
        row.prompt for row in training_rows("replay", 1020)
    }


def test_rows_may_stand_behind_solved_ones() -> None:
    (portion,) = draw_portions(
        [Ingredient(task="builtin:dsum", cap=40, shots=(0, 2))], DSUM, seed=0
    )
    turns = Counter(len(row.messages) for _, row in portion.rows)
    assert set(turns) == {0, 5}  # as it is, or two solved ones and the one that is asked
    assert min(turns.values()) > 8
    for _, row in portion.rows:
        shown = [turn["content"] for turn in row.messages if turn["role"] == "assistant"]
        assert row.completion not in shown


def test_a_task_without_an_instruction_is_asked_in_each_of_its_wordings() -> None:
    (portion,) = draw_portions([Ingredient(task="builtin:story", cap=60)], DSUM, seed=0)
    asked = {prompt["segments"][0]["text"] for prompt, _ in portion.rows}
    assert asked == {f"{w}\n" for w in load_source(Data(task="builtin:story")).instructions}


def test_the_held_out_part_of_a_file_stays_held_out(
    make_config: MakeConfig, toy_file: Path
) -> None:
    data = {"train": str(toy_file), "split": {}}
    config = make_config(
        data={**data, "mixture": [{"data": str(toy_file), "template": "{prompt}"}]}
    )
    checked = check_data(config)
    held_out = checked.splits["validation"] + checked.splits["test"]
    asked = {tuple(row.input_ids) for row in checked.train}
    assert held_out
    assert not asked & {tuple(row.input_ids) for row in held_out}
    assert len(checked.train) == 2 * len(checked.splits["train"])


def test_copies_of_held_out_rows_in_other_files_are_dropped(
    make_config: MakeConfig, toy_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text(toy_file.read_text())
    data = {"train": str(toy_file), "split": {}, "mixture": [{"data": str(copy)}]}
    checked = check_data(make_config(data=data))
    held_out = len(checked.splits["validation"]) + len(checked.splits["test"])
    assert len(checked.mixed[0].rows) == 120 - held_out
    assert f"dropped {held_out} rows of copy.jsonl that are held out here" in checked.notes


def test_a_file_that_is_tested_on_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    files = {}
    for number, name in enumerate(("train", "validation", "test")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"prompt": f"p{number}", "completion": "c"}) + "\n")
        files[name] = str(path)
    config = make_config(data={**files, "mixture": [{"data": files["test"]}]})
    with pytest.raises(RecipeError, match=r"data\.mixture\[0\]\.data: .*held out by this recipe"):
        check_data(config)


def test_rows_that_are_too_long_are_refused_by_the_source(
    make_config: MakeConfig, toy_file: Path
) -> None:
    mixture = [{"data": str(toy_file), "shots": 40}]
    config = make_config(data={"train": str(toy_file), "split": {}, "mixture": mixture})
    with pytest.raises(DataError, match=r"mixture toy\.jsonl rows are longer than 256 tokens"):
        check_data(config)


@pytest.mark.parametrize(
    ("ingredient", "says"),
    [
        ({"task": "builtin:dsum", "rat": 1}, "mixture[0].rat: unknown key, did you mean 'rate'?"),
        ({}, "give either task: builtin:<name> or data: <file>"),
        ({"task": "dsum"}, "task must be builtin:<name>, found 'dsum'"),
        ({"task": "builtin:dsum", "rate": 0}, "mixture[0].rate: Input should be greater than 0"),
        ({"task": "builtin:dsum", "shots": []}, "shots must be 0 or more"),
    ],
)
def test_mistakes_are_named(ingredient: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"data": {"task": "builtin:dsum", "mixture": [ingredient]}})
    assert says in str(caught.value)


def test_a_run_on_a_mixture_names_its_rows_by_hash(make_config: MakeConfig, toy_file: Path) -> None:
    mixture = [{"data": str(toy_file), "split": {}, "template": "Again: {prompt}", "cap": 30}]
    data = {"train": str(toy_file), "split": {}, "mixture": mixture}
    result = train(make_config(data=data, optim={"epochs": 1, "batch": 32}), score_test=False)
    manifest = parse_manifest((result.directory / "manifest.json").read_bytes())
    (record,) = [record for record in manifest.data if record.split.startswith("mixture")]
    assert (record.split, record.rows) == ("mixture:toy.jsonl", 30)
    assert record.sha256 == check_data(make_config(data=data)).mixed[0].sha256
    steps = [
        json.loads(line)
        for line in (result.directory / "metrics.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]
    train_rows = next(record.rows for record in manifest.data if record.split == "train")
    assert len([s for s in steps if "loss" in s]) == -(-(train_rows + 30) // 32)
