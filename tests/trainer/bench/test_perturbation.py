"""Changes keep what an answer rests on, and are the same each time."""

import re

import pytest

from polygraft.trainer.bench import perturbation
from polygraft.trainer.bench.perturbation import (
    ROBUSTNESS,
    lower_case,
    perturb,
    swap_names,
    typing_errors,
    white_space,
)

TEXT = "Ada: Shall we play chess at the library on Wednesday?\nBen: That works for me, Ada."


@pytest.mark.parametrize("name", ROBUSTNESS)
def test_a_change_is_the_same_each_time_and_changes_something(name: str) -> None:
    change = ROBUSTNESS[name]
    text = TEXT * 4
    assert change(text) == change(text) != text
    assert len(change(text).splitlines()) == len(text.splitlines())


def test_small_letters() -> None:
    assert lower_case("At 10 am, ADA!") == "at 10 am, ada!"


def test_typing_errors_move_letters_and_lose_none() -> None:
    before, after = re.findall(r"\w+", TEXT * 10), re.findall(r"\w+", typing_errors(TEXT * 10))
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert 0.02 < len(changed) / len(before) < 0.2
    for a, b in changed:
        assert (sorted(a), a[0], a[-1]) == (sorted(b), b[0], b[-1])


def test_white_space_grows_only_where_there_was_a_blank() -> None:
    assert " ".join(white_space(TEXT).split(" ")) == white_space(TEXT)
    assert re.sub(" +", " ", white_space(TEXT)) == TEXT
    assert max(map(len, re.findall(" +", white_space(TEXT * 4)))) == 3


def test_only_the_named_fields_change() -> None:
    row = {"question": "WHO?", "choices": ["A", "B"], "answer": 0}
    assert perturb(row, ("question",), str.lower) == {**row, "question": "who?"}


def test_names_are_exchanged_together_in_all_texts() -> None:
    row = {"passage": TEXT, "choices": ["Ada", "Ben", "Adam"], "label": 1}
    swapped = swap_names(row)
    assert swapped is not None
    one, other, untouched = swapped["choices"]
    assert one != other
    assert {one, other} <= set(perturbation.RARE)
    assert untouched == "Adam"
    assert swapped["passage"] == TEXT.replace("Ada", one).replace("Ben", other)
    assert swapped["label"] == 1


def test_a_row_without_a_common_name_is_left_out() -> None:
    assert swap_names({"sentence": "The soup was great.", "label": 1}) is None
