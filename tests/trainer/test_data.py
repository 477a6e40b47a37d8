"""Reading rows: every refusal names file, line and field."""

from pathlib import Path

import pytest

from polygraft.trainer.data import read_examples, rows_sha256
from polygraft.trainer.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"q": "hé", "a": 3, "g": "x"}\n\n{"q": "b\u2028c", "a": "y", "g": "x", "id": "k"}\n',
    )
    first, second = read_examples(path, ["q"], "a", "g")
    assert (first.variables, first.completion, first.id) == ({"q": "hé"}, "3", "1")
    assert (second.id, second.group, second.source) == ("k", "x", f"{path}:3")
    assert second.variables == {"q": "b\u2028c"}


def test_csv_rows_may_hold_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'q,a\n"one\ntwo",three\nfour,five\n')
    first, second = read_examples(path, ["q"], "a", None)
    assert (first.variables["q"], first.completion) == ("one\ntwo", "three")
    assert second.source == f"{path}:4"


def test_without_a_group_key_equal_rows_are_one_group(tmp_path: Path) -> None:
    row = '{"q": "a", "a": "b"}\n'
    first, second = read_examples(write(tmp_path / "a.jsonl", row + row), ["q"], "a", None)
    assert first.group == second.group


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"q": 1, "a": 2}\n{"q": }\n', r"a.jsonl:2: is not valid JSON"),
        ("a.jsonl", '{"q": "\\ud800", "a": 2}\n', r"a.jsonl:1: is not valid JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", r"a.jsonl:1: is not valid JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: must be an object"),
        ("a.jsonl", '{"q": "x"}\n', r"a.jsonl:1: a: no such field. The row has: q"),
        ("a.jsonl", '{"q": ["x"], "a": "y"}\n', r"a.jsonl:1: q: must be text or a number"),
        ("a.jsonl", '{"q": true, "a": "y"}\n', r"a.jsonl:1: q: .*found bool"),
        ("a.jsonl", "\n", r"a.jsonl: holds no rows"),
        ("a.csv", "q,a\n1\n", r"a.csv:2: has another number of fields"),
        ("a.csv", "q,a\n1,2,3\n", r"a.csv:2: has another number of fields"),
        ("a.txt", "x", r"use .jsonl, .csv, .parquet"),
    ],
)
def test_a_broken_file_is_refused_at_its_line(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read_examples(write(tmp_path / name, text), ["q"], "a", None)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl", ["q"], "a", None)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_examples(tmp_path / "b.jsonl", ["q"], "a", None)


def test_the_hash_covers_content_and_order(tmp_path: Path) -> None:
    rows = read_examples(
        write(tmp_path / "a.jsonl", '{"q": "a", "a": "b"}\n{"q": "c", "a": "d"}\n'),
        ["q"],
        "a",
        None,
    )
    assert rows_sha256(rows) != rows_sha256(rows[::-1])
    assert rows_sha256(rows) == rows_sha256(list(rows))
