"""The same rows from every kind of file, and chats and plain text beside fields."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from polygraft.trainer.config import Data
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.forms import Form, form_of
from polygraft.trainer.reader import make_reader
from polygraft.trainer.rows import read_rows, scan_rows
from polygraft.trainer.source import load_source, scored_rows

ROWS = [{"prompt": f"p{i}", "completion": "c, é\n"} for i in range(3)]
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    jsonl = write_lines(tmp_path / "a.jsonl", [dict(row) for row in ROWS])
    csv = tmp_path / "a.csv"
    csv.write_text("prompt,completion\n" + "".join(f'p{i},"c, é\n"\n' for i in range(3)))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in (jsonl, csv, tmp_path / "a.parquet"):
        assert [row for _, row in read_rows(path)] == ROWS
    assert [number for number, _ in read_rows(tmp_path / "a.parquet")] == [1, 2, 3]


def test_every_broken_line_is_told_in_one_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[]\n{"a": 2}\n')
    found = list(scan_rows(path))
    assert [line for line, _ in found] == [1, 2, 3, 4]
    assert [isinstance(row, DataError) for _, row in found] == [False, True, True, False]


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR0nothing")
    with pytest.raises(DataError, match="is not valid Parquet"):
        list(read_rows(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path / "none.parquet"))


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": "a", "completion": "b"}, Form.FIELDS),
        ({"messages": []}, Form.MESSAGES),
        ({"text": "a"}, Form.TEXT),
        ({"question": "a"}, Form.FIELDS),
    ],
)
def test_the_form_is_told_from_the_first_row(row: dict[str, object], form: Form) -> None:
    assert form_of(row, ["prompt"]) is form


def test_every_answer_of_a_chat_is_learned_with_what_stands_before_it(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", [{"id": "x", "messages": CHAT}, {"messages": CHAT[1:3]}]
    )
    source = scored_rows(path, None, "{prompt}", "completion")
    first, second, third = source.splits.test
    assert (first.id, first.completion, first.messages) == ("x.1", "Hello", tuple(CHAT[:2]))
    assert (second.id, second.completion, second.messages) == ("x.2", "Ciao", tuple(CHAT[:4]))
    assert first.group == second.group != third.group
    assert (third.id, third.source) == ("2", f"{path}:2")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hello", "messages: must be a list"),
        ([{"role": "bot", "content": "x"}], r"messages\[0\]: must have a role of system, user"),
        ([{"role": "user", "content": None}], r"messages\[0\]: .* text as content"),
        (CHAT[:2], "nothing to learn"),
    ],
)
def test_a_broken_chat_is_named(tmp_path: Path, messages: object, says: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": messages}])
    with pytest.raises(DataError, match=f"a.jsonl:1: {says}|a.jsonl:1: messages: .*{says}"):
        scored_rows(path, None, "{prompt}", "completion")


def test_a_system_message_beside_chats_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}])
    data = Data(train=str(path), split={}, wrap="chat", system="Be long.")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="carry their own system message"):
        make_reader(data, str(path))


def test_plain_text_is_learned_whole(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": f"Once {i}."} for i in range(40)])
    source = load_source(Data.model_validate({"train": str(path), "split": {}}))
    example = source.splits.train[0]
    assert source.metric == "loss"
    assert (example.variables, example.completion[:5]) == ({"prompt": ""}, "Once ")
