"""Scoring side by side: the base gets its best wording, and both ways to ask agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from polygraft.trainer.config import Data
from polygraft.trainer.data import Example
from polygraft.trainer.errors import DataError
from polygraft.trainer.generate import Answer
from polygraft.trainer.remote import make_request
from polygraft.trainer.scoring import (
    Candidate,
    Prompt,
    literal_text,
    predictions,
    score_candidate,
)
from polygraft.trainer.source import Source, load_source, scored_rows
from polygraft.trainer.splits import Splits

ROWS = [Example(str(i), "g", {"text": f"t{i}"}, f"answer {i}", "here") for i in range(4)]
PROMPT: dict[str, Any] = {
    "segments": [{"var": "text"}],
    "wrap": "chat",
    "stop_sequences": [],
    "defaults": {"temperature": "0", "max_output_tokens": "9"},
}


def source(instructions: tuple[str, ...]) -> Source:
    return Source(Splits([], ROWS, ROWS), PROMPT, "exact_match", instructions, None)


def knows(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
    """Understands one wording only."""
    right = literal_text(prompt) == "Second."
    return [Answer([], row.completion if right else "no", True) for row in rows]


def test_the_base_is_asked_with_its_best_wording() -> None:
    candidate = Candidate(None, knows, knows, None)
    base, adapter = score_candidate(candidate, source(("First.", "Second.", "Third.")), "test")
    assert (literal_text(base.prompt), base.value("exact_match")) == ("Second.", 100.0)
    assert (literal_text(adapter.prompt), adapter.value("exact_match")) == ("", 0.0)
    record = predictions(ROWS, [base, adapter])[2]
    assert record == {
        "id": "2",
        "variables": {"text": "t2"},
        "reference": "answer 2",
        "base": "answer 2",
        "adapter": "no",
    }


def test_rows_of_plain_text_have_no_answers_to_score(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "Once."}\n')
    source = scored_rows(path, None, "{prompt}", "completion")
    with pytest.raises(DataError, match=r"text.jsonl:1: .*no answers to score"):
        score_candidate(Candidate(None, knows, knows, None), source, "test")


def test_a_chat_is_sent_as_messages_to_base_and_adapter() -> None:
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"})
    row = Example("1", "g", {}, "ok", "here", (*turns, {"role": "user", "content": "Bye"}))
    request = make_request(PROMPT, row, "sum@live", by_variables=False)
    assert request["messages"] == list(row.messages)
    assert "prompt" not in request
    assert "variables" not in request


def test_an_instructed_prompt_is_the_same_for_base_and_adapter() -> None:
    prompt = {**PROMPT, "segments": [{"text": "Second."}, {"var": "text"}]}
    candidate = Candidate(prompt, knows, knows, None)
    base, adapter = score_candidate(candidate, source(("First.",)), "test")
    assert base.prompt == adapter.prompt == prompt


def test_a_request_carries_variables_or_the_prompt_they_make() -> None:
    by_variables = make_request(PROMPT, ROWS[0], "dsum", by_variables=True)
    assert by_variables == {
        "adapter": "dsum",
        "temperature": 0.0,
        "max_output_tokens": 9,
        "variables": {"text": "t0"},
    }
    prompt = {**PROMPT, "segments": [{"text": "Q: "}, {"var": "text"}], "stop_sequences": ["\n"]}
    chat = make_request({**prompt, "system": "Be brief."}, ROWS[0], "", by_variables=False)
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: t0"},
    ]
    plain = make_request({**prompt, "wrap": "none"}, ROWS[0], "", by_variables=False)
    assert (plain["prompt"], plain["stop"]) == ("Q: t0", ["\n"])


def test_a_built_in_task_becomes_three_splits_without_torch() -> None:
    made = load_source(Data(task="builtin:dsum", rows=20))
    assert [len(rows) for rows in made.splits.named().values()] == [20, 100, 150]
    assert made.is_instructed
    names = load_source(Data(task="builtin:names"))
    assert not names.is_instructed
    assert len(names.base_prompts()) == len(names.instructions) > 1
    assert names.prompt_text == names.instructions[0]


def test_rows_are_read_for_the_prompt_that_the_adapter_carries(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "completion": "b"}\n')
    carried = scored_rows(path, PROMPT, "{prompt}", "completion")
    assert carried.prompt == PROMPT
    assert carried.splits.test[0].variables == {"text": "a"}
    bare = scored_rows(path, None, "Say {text}", "completion")
    assert literal_text(bare.prompt) == "Say"
