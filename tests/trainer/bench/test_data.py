"""Missing and broken files are named, with what belongs where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from polygraft.trainer.bench.data import find_tasks
from polygraft.trainer.bench.suites import check_suite
from polygraft.trainer.errors import DataError, RecipeError

Write = Callable[[str, Sequence[Mapping[str, Any]]], Path]
GOOD = {"sentence": "The soup was great.", "label": 1}


def refusal(suite: str, folder: Path | None, only: Sequence[str] = (), **options: bool) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        find_tasks(suite, folder, only, with_shots=options.get("shots", False))
    return str(caught.value)


def test_what_is_there_runs_and_what_is_missing_is_said_file_by_file(write_rows: Write) -> None:
    folder = write_rows("glue/sst2/validation.jsonl", [GOOD, GOOD])
    found = find_tasks("glue", folder, [], with_shots=False)
    assert [task.name for task in found.tasks] == ["sst2"]
    assert len(found.missing) == 8
    assert found.missing[0] == (
        "cola: data missing, put validation.jsonl with fields sentence (text), label (a whole "
        f"number from 0 to 1) at {folder}/glue/cola/"
    )
    assert "put validation_mismatched.jsonl" in found.missing[6]


def test_nothing_there_is_an_error_that_says_all(tmp_path: Path) -> None:
    text = refusal("superglue", tmp_path)
    assert text.count("data missing") == 8
    assert "question (cause or effect)" in text
    assert "put test.jsonl with fields question (text), choices (a list of 4 texts)" in refusal(
        "mmlu", tmp_path
    )
    assert "put causal_judgment.jsonl" in refusal("bigbench", tmp_path)


def test_a_named_task_must_be_there(write_rows: Write) -> None:
    folder = write_rows("glue/sst2/validation.jsonl", [GOOD])
    assert "rte: data missing" in refusal("glue", folder, ["sst2", "rte"])
    assert "put train.jsonl" in refusal("glue", folder, ["sst2"], shots=True)
    assert "did you mean sst2?" in refusal("glue", folder, ["sst"])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "x", "label": 0}, "lacks the field sentence; it has text, label"),
        ({}, "lacks the fields sentence, label; it has none"),
        ({**GOOD, "label": 2}, "label: must be a whole number from 0 to 1, not 2"),
        ({**GOOD, "label": True}, "must be a whole number from 0 to 1, not True"),
        ({**GOOD, "label": "positive"}, "must be a whole number from 0 to 1, not 'positive'"),
        ({**GOOD, "sentence": None}, "sentence: must be text, not None"),
    ],
)
def test_a_wrong_row_is_named_by_line_and_field(
    write_rows: Write, row: Mapping[str, Any], text: str
) -> None:
    folder = write_rows("glue/sst2/validation.jsonl", [GOOD, row])
    found = refusal("glue", folder)
    assert "validation.jsonl:2" in found
    assert text in found


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mmlu/anatomy/test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"question": "?", "choices": ["a", "b", "c", "d"], "answer": 0}\n{"question\n')
    assert "test.jsonl:2" in refusal("mmlu", tmp_path)
    path.write_text("\n\n")
    assert "has no rows" in refusal("mmlu", tmp_path)
    path.write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refusal("mmlu", tmp_path)


def test_a_target_that_is_no_option_is_named(write_rows: Write) -> None:
    row = {
        "inputs": "?",
        "targets": ["no"],
        "multiple_choice_targets": ["yes"],
        "multiple_choice_scores": [1],
    }
    folder = write_rows("bigbench/causal_judgment.jsonl", [row])
    assert "the target 'no' is none of the options" in refusal("bigbench", folder)


def test_a_file_without_a_definition_is_named_with_the_nearest(write_rows: Write) -> None:
    folder = write_rows("bigbench/causal_judgement.jsonl", [{}])
    assert "did you mean causal_judgment?" in refusal("bigbench", folder)
    folder = write_rows("mmlu/anatomie/test.jsonl", [{}])
    assert "did you mean anatomy?" in refusal("mmlu", folder)


def test_unknown_suites_and_absent_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean superglue"):
        check_suite("super-glue")
    assert "no such folder" in refusal("glue", tmp_path / "absent")
    assert "runs on data of your own" in refusal("glue", None)


def test_parquet_is_read_too(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "glue/sst2/validation.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist([GOOD, GOOD]), path)
    assert find_tasks("glue", tmp_path, ["sst2"], with_shots=False).tasks[0].rows == [GOOD, GOOD]
