"""Rows in which one thing is new: they hold that, and nothing that training held."""

import pytest

from polygraft.trainer.tasks.axes import ANSWERS, AXES, make_axis
from polygraft.trainer.tasks.builtin import make_task


@pytest.mark.parametrize("task", ANSWERS)
def test_only_what_is_said_to_be_new_is_new(task: str) -> None:
    train = make_task(task).splits["train"]
    known = {row["variables"]["dialogue"] for row in train}
    people = {line.split(":")[0] for text in known for line in text.splitlines()}
    for axis, (wordings, held_out) in AXES.items():
        rows = make_axis(task, axis, rows=12)
        assert rows == make_axis(task, axis, rows=12)
        assert not known & {row["variables"]["dialogue"] for row in rows}
        assert {row["group"].split("-")[0] for row in rows} == {wordings}
        speakers = {
            line.split(":")[0] for row in rows for line in row["variables"]["dialogue"].splitlines()
        }
        assert not speakers & people if held_out else speakers & people


@pytest.mark.parametrize("task", ANSWERS)
def test_the_answers_are_those_of_the_task(task: str) -> None:
    from random import Random

    from polygraft.trainer.tasks.dialogues import make_dialogue

    row = make_task(task, rows={"train": 1}).splits["train"][0]
    chat = make_dialogue(Random(f"{task}/train/0"), wordings="train")
    assert ANSWERS[task](chat) == row["completion"]
