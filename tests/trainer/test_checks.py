"""Data that would train quietly wrong is refused."""

import pytest

from polygraft.trainer.checks import check_rows
from polygraft.trainer.data import Example
from polygraft.trainer.encode import Encoded
from polygraft.trainer.errors import DataError


def row(number: int, completion: str = "x", length: int = 4) -> Encoded:
    example = Example(str(number), "g", {"q": str(number)}, completion, f"rows.jsonl:{number}")
    return Encoded(example, [1] * (length - 2), [2, 3])


def test_many_empty_completions_are_an_error_that_names_rows() -> None:
    rows = [row(i, completion=" " if i < 8 else "x") for i in range(100)]
    with pytest.raises(DataError) as caught:
        check_rows("train", rows, 10, "error")
    assert "8 of 100 train rows have an empty completion: rows.jsonl:0, " in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_a_few_empty_completions_are_dropped_with_a_warning() -> None:
    rows = [row(i, completion="" if i == 7 else "x") for i in range(200)]
    checked = check_rows("train", rows, 10, "error")
    assert len(checked.rows) == 199
    assert checked.warnings == [
        "dropped: 1 of 200 train rows have an empty completion: rows.jsonl:7."
    ]


def test_long_rows_are_an_error_unless_they_may_be_dropped() -> None:
    rows = [row(1), row(2, length=11)]
    with pytest.raises(DataError, match=r"1 of 2 test rows are longer than 10 tokens \(longest 11"):
        check_rows("test", rows, 10, "error")
    assert check_rows("test", rows, 10, "drop").rows == rows[:1]
    with pytest.raises(DataError, match="no row of the test split is left"):
        check_rows("test", rows[1:], 10, "drop")


def test_repeated_rows_are_counted() -> None:
    checked = check_rows("train", [row(1), row(1), row(2)], 10, "error")
    assert checked.warnings == ["1 train rows repeat another row word for word"]
