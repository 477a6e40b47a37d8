"""Made tasks are deterministic, split honestly, and usable as manifests want them."""

import json
import subprocess
import sys

import pytest

from polygraft.adapters.prompt import PromptRecipe
from polygraft.trainer.tasks import TASKS, Task, builtin, make_task, slot_accuracy
from polygraft.trainer.tasks.dialogues import ANSWERS, ASKS, CORRECTIONS, choose
from polygraft.trainer.tasks.words import LISTED, is_held_out


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return make_task(request.param)


def _inputs(task: Task, split: str) -> set[str]:
    return {json.dumps(row["variables"]) for row in task.splits[split]}


def test_every_split_has_its_default_number_of_rows(task: Task) -> None:
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 600,
        "validation": 100,
        "test": 150,
    }


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(task: Task) -> None:
    assert make_task(task.name).splits == task.splits
    assert make_task(task.name, seed=1).splits != task.splits


def test_no_input_occurs_twice_within_or_across_splits(task: Task) -> None:
    inputs = [_inputs(task, split) for split in task.splits]
    assert [len(distinct) for distinct in inputs] == [600, 100, 150]
    assert not inputs[0] & inputs[1]
    assert not inputs[0] & inputs[2]
    assert not inputs[1] & inputs[2]


def test_rows_are_json_with_the_variable_that_the_recipe_names(task: Task) -> None:
    variables = {segment["var"] for segment in task.recipe["segments"] if "var" in segment}
    for row in task.splits["test"]:
        assert json.loads(json.dumps(row)) == row
        assert row["variables"].keys() == variables
        assert row["completion"]


def test_recipes_are_valid_in_a_manifest(task: Task) -> None:
    recipe = PromptRecipe.model_validate(task.recipe)
    assert recipe.wrap == "chat"


def test_ids_are_unique_over_all_splits(task: Task) -> None:
    ids = [row["id"] for rows in task.splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["dsum", "support", "names", "duty"])
def test_people_of_test_rows_never_speak_in_training(name: str) -> None:
    splits = make_task(name).splits
    speakers = {
        split: {
            line.split(":")[0] for row in rows for line in row["variables"]["dialogue"].splitlines()
        }
        for split, rows in splits.items()
    }
    assert not any(is_held_out(name) for name in speakers["train"])
    assert all(is_held_out(name) for name in speakers["test"] | speakers["validation"])


@pytest.mark.parametrize("table", [*ASKS.values(), *ANSWERS.values(), CORRECTIONS])
def test_dialogue_wordings_of_the_splits_are_disjoint(table: dict[str, tuple[str, ...]]) -> None:
    train, validation, test, unseen = (
        set(choose(table, wordings)) for wordings in ("train", "validation", "test", "unseen")
    )
    assert all((train, validation, test, unseen))
    assert len(train | validation | test | unseen) == len(table["known"]) + len(table["unseen"])
    assert train | validation | test == set(choose(table, "known"))


@pytest.mark.parametrize("name", ["dsum", "support", "names", "duty"])
def test_rows_use_the_wordings_of_their_split(name: str) -> None:
    for split, rows in make_task(name).splits.items():
        assert all(row["group"].startswith(f"{split}-") for row in rows)


def test_unseen_summaries_differ_from_plain_ones_in_the_test_split_only() -> None:
    plain, unseen = make_task("dsum"), make_task("dsum-unseen")
    assert {row["group"].split("-")[0] for row in unseen.splits["train"]} == {"train"}
    assert {row["group"].split("-")[0] for row in unseen.splits["test"]} == {"unseen"}
    assert plain.recipe == unseen.recipe


def test_a_customer_chat_asks_for_a_summary_as_of_friends_and_an_action() -> None:
    from polygraft.trainer.tasks.dialogues import SUMMARIES
    from polygraft.trainer.tasks.support import ACTIONS, CLOSINGS, GREETINGS, HISTORIES

    for row in make_task("support").splits["test"]:
        summary, action = row["completion"].split("\nAction: ")
        kind = row["group"].split("-")[1]
        assert summary == SUMMARIES[kind].format(**row["slots"])
        assert action == ACTIONS[kind].format(**row["slots"]) + "."
        assert slot_accuracy(row["completion"], row) == 1
    for frames in (GREETINGS, HISTORIES, CLOSINGS):
        texts = [text for split in frames.values() for text in split]
        assert len(set(texts)) == len(texts)


def test_ticket_wordings_of_the_splits_are_disjoint() -> None:
    from polygraft.trainer.tasks.tickets import COMPLAINTS

    for wordings in COMPLAINTS.values():
        everything = [text for texts in wordings.values() for text in texts]
        assert len(set(everything)) == len(everything)


def test_row_counts_can_be_chosen() -> None:
    task = make_task("dsum", rows={"train": 7, "test": 3})
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 7,
        "validation": 100,
        "test": 3,
    }


def test_an_unknown_task_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="choose one of dsum"):
        make_task("poetry")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split dev"):
        make_task("dsum", rows={"dev": 3})


def test_more_rows_than_a_task_can_make_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "make_pair", lambda rng: (str(n := rng.randrange(50)), str(n)))
    with pytest.raises(ValueError, match="only 50 distinct train rows"):
        make_task("vel2en")


def test_slot_accuracy_counts_the_facts_that_are_stated() -> None:
    row = {"slots": {"a": "Ann", "b": "Ben", "day": "Friday", "time": "1 pm"}}
    assert slot_accuracy("Ann and Ben meet on Friday at 1 pm.", row) == 1.0
    assert slot_accuracy("Anna and Ben meet on Friday at 11 pm.", row) == 0.5
    assert slot_accuracy("", row) == 0.0


def test_the_right_summary_states_every_fact() -> None:
    for row in make_task("dsum").splits["test"]:
        assert slot_accuracy(row["completion"], row) == 1.0


def test_listed_names_contain_held_out_ones() -> None:
    assert 3 <= sum(map(is_held_out, LISTED)) <= len(LISTED) // 2


def test_importing_tasks_does_not_import_torch() -> None:
    code = "import sys, polygraft.trainer.tasks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
