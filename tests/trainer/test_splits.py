"""Splits by group: stable, disjoint, without leaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polygraft.trainer.config import Split
from polygraft.trainer.data import Example
from polygraft.trainer.errors import DataError
from polygraft.trainer.splits import Splits, split_by_group, without_leaks


def example(text: str, group: str) -> Example:
    return Example(text, group, {"prompt": text}, "x", "here:1")


ROWS = [example(f"{i}", f"g{i % 100}") for i in range(400)]


def test_no_group_stands_in_two_splits() -> None:
    parts = split_by_group(ROWS, Split())
    groups = [{row.group for row in rows} for rows in parts.named().values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 100
    assert 0.6 < len(parts.train) / len(ROWS) < 0.95


@given(st.integers(0, 1000))
def test_new_rows_never_move_old_ones(extra: int) -> None:
    split = Split(seed=3)
    before = split_by_group(ROWS, split)
    after = split_by_group([*ROWS, example("new", f"new{extra}")], split)
    for name, rows in before.named().items():
        assert rows == [row for row in after.named()[name] if row.id != "new"]


def test_another_seed_splits_otherwise() -> None:
    assert split_by_group(ROWS, Split(seed=1)).test != split_by_group(ROWS, Split(seed=2)).test


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="got no rows"):
        split_by_group([example("a", "g")], Split())


def test_train_rows_that_are_scored_later_are_dropped() -> None:
    leak, clean = example("leak", "g1"), example("clean", "g2")
    splits, count = without_leaks(Splits([leak, clean], [], [example("leak", "g3")]))
    assert (splits.train, count) == ([clean], 1)
