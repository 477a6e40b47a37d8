"""Every installed definition runs on local rows, without any connection, as in lm-eval itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from polygraft.trainer.bench.data import find_tasks
from polygraft.trainer.bench.local_model import LocalModel
from polygraft.trainer.bench.running import Options, Runs, run_tasks
from polygraft.trainer.bench.served_model import open_served
from polygraft.trainer.bench.suites import (
    SUITES,
    bigbench_tasks,
    mmlu_subjects,
)

Write = Callable[[str, Sequence[Mapping[str, Any]]], Path]

SENTENCES = ("Ada lost a kite.", "Ben found the kite on Monday.", "The soup was great.")


def example(kind: str, number: int) -> Any:
    """A value of a kind of field."""
    name, _, bound = kind.partition(" ")
    sentence = SENTENCES[number % len(SENTENCES)]
    return {
        "text": sentence,
        "filled": sentence,
        "texts": [f"option {i}" for i in range(int(bound or 2) if bound.isdecimal() else 2)],
        "list": ["option 0", "option 1", "none"],
        "numbers": [1, 0, 0],
        "label": number % int(bound) if name == "label" else 0,
        "index": 1,
        "word": bound.split("|")[number % 2] if name == "word" else "",
    }[name]


def rows_for(fields: Mapping[str, str], count: int = 4) -> list[dict[str, Any]]:
    rows = [{name: example(kind, i) for name, kind in fields.items()} for i in range(count)]
    for row in rows:
        row["idx"] = 7  # more than is read
        if "end1" in row:
            row |= {"start1": 0, "end1": 3}
        if "span2_index" in row:
            row |= {"text": "Ada said that she was ill.", "span2_text": "she", "span2_index": 3}
        if "answers" in row:
            row |= {"query": "@placeholder lost a kite", "passage": "Ada lost it.\n@highlight\nA"}
            row |= {"entities": ["Ada", "Ben", "Ada"], "answers": ["Ada"]}
    return rows


def write_suite(suite: str, write_rows: Write) -> Path:
    """Files for every task of a suite, or for some of its many."""
    from polygraft.trainer.bench import suites

    if suite == "mmlu":
        made = [suites.mmlu(subject) for subject in ("anatomy", "virology")]
    elif suite == "bigbench":
        made = [
            suites.bigbench("causal_judgment", choices=True),
            suites.bigbench("auto_debugging", choices=False),
        ]
    else:
        make = suites.glue if suite == "glue" else suites.superglue
        made = [make(name) for name in SUITES[suite].split()]
    for definition in made:
        rows = rows_for(definition.fields)
        folder = write_rows(f"{definition.test_file}.jsonl", rows)
        write_rows(f"{definition.shots_file}.jsonl", rows[::-1])
    return folder


def values(runs: Runs) -> dict[str, dict[str, float | None]]:
    return {
        run.task.name: {score.metric: score.value for score in run.scores} for run in runs.tasks
    }


@pytest.mark.parametrize("suite", ["glue", "superglue", "mmlu", "bigbench"])
def test_every_definition_gives_what_it_gives_with_lm_evals_own_class(
    suite: str,
    write_rows: Write,
    nano: LocalModel,
    hugging_face: Any,
    no_network: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = find_tasks(suite, write_suite(suite, write_rows), [], with_shots=False)
    ours = run_tasks(nano, found.tasks, Options(), lambda _: None)
    assert found.missing == []
    wanted_names = {
        "mmlu": ["mmlu_anatomy", "mmlu_virology"],
        "bigbench": [
            "bigbench_auto_debugging_generate_until",
            "bigbench_causal_judgment_multiple_choice",
        ],
        "superglue": [name.replace("rte", "sglue_rte") for name in SUITES["superglue"].split()],
    }.get(suite, SUITES[suite].split())
    assert [run.task.name for run in ours.tasks] == wanted_names
    # The same evaluation with lm-eval's model in place of ours.
    from polygraft.trainer.bench import lm

    class Counted:
        def __new__(cls, *_: object) -> Any:
            hugging_face.cut = hugging_face.tokens = hugging_face.seconds = 0
            return hugging_face

    monkeypatch.setattr(lm, "PolygraftLM", Counted)
    theirs = run_tasks(nano, found.tasks, Options(), lambda _: None)
    assert values(ours) == values(theirs)
    for one, other in zip(ours.tasks, theirs.tasks, strict=True):
        assert one.rows == other.rows == 4
        for mine, its in zip(one.samples, other.samples, strict=True):
            assert mine["prompt_hash"] == its["prompt_hash"]
            if isinstance(mine["filtered_resps"][0], tuple):
                assert [p for p, _ in mine["filtered_resps"]] == pytest.approx(
                    [p for p, _ in its["filtered_resps"]], abs=1e-4
                )


def test_shots_and_chat_stand_in_the_prompt(write_rows: Write, nano: LocalModel) -> None:
    folder = write_suite("mmlu", write_rows)
    found = find_tasks("mmlu", folder, ["anatomy"], with_shots=True)
    runs = run_tasks(nano, found.tasks, Options(shots=2, chat=True, limit=1), lambda _: None)
    (asked, option) = runs.tasks[0].samples[0]["arguments"][0]
    assert asked.startswith("<s><u>The following are multiple choice questions")
    assert asked.count("Answer:") == 3
    assert asked.endswith("Answer:<a>")
    assert option == "A"  # behind a chat template lm-eval puts no blank
    assert runs.tasks[0].rows == 1


def test_a_server_gives_the_same_scores(write_rows: Write, nano: LocalModel, served: str) -> None:
    folder = write_suite("glue", write_rows)
    found = find_tasks("glue", folder, ["sst2", "mnli"], with_shots=False)
    for chat in (False, True):
        options, seen = Options(chat=chat), []
        remote = run_tasks(open_served(served), found.tasks, options, seen.append)
        local = run_tasks(nano, found.tasks, options, lambda _: None)
        assert values(remote) == values(local)
        assert sum(seen) == 4 * 2 + 4 * 3


def test_everything_that_is_listed_has_a_definition() -> None:
    assert len(mmlu_subjects()) == 57
    assert "causal_judgment" in bigbench_tasks(choices=True)
    assert "date_understanding" in bigbench_tasks(choices=False)
