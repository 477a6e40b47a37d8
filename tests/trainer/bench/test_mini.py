"""The made suites: fields of the originals, the same rows each time, answers that can be known."""

from __future__ import annotations

import pytest

from polygraft.trainer.bench import suites
from polygraft.trainer.bench.fields import check_row
from polygraft.trainer.bench.mini import ROWS, SHOTS, make_tasks
from polygraft.trainer.bench.suites import Definition

MINI = [name for name in suites.SUITES if name.startswith("mini-")]
ORIGINALS: dict[str, Definition] = {
    "mini_sst2": suites.glue("sst2"),
    "mini_rte": suites.glue("rte"),
    "mini_boolq": suites.superglue("boolq"),
    "mini_copa": suites.superglue("copa"),
}


@pytest.mark.parametrize("suite", MINI)
def test_rows_have_the_fields_of_the_originals_and_are_distinct(suite: str) -> None:
    tasks = make_tasks(suite)
    assert " ".join(task.name for task in tasks) == suites.SUITES[suite]
    for task in tasks:
        by_text = suites.bigbench("causal_judgment", choices=True)
        default = by_text if suite == "mini-bigbench" else suites.mmlu("anatomy")
        original = ORIGINALS.get(task.name, default)
        for row in [*task.rows, *task.shots]:
            check_row(original.fields, row, task.name)
            assert set(row) == set(original.fields)
        seen = {repr(row) for row in [*task.rows, *task.shots]}
        assert len(seen) == len(task.rows) + len(task.shots)
        assert len(task.shots) == SHOTS
        assert len(task.rows) == ROWS


@pytest.mark.parametrize("suite", MINI)
def test_the_same_seed_gives_the_same_rows(suite: str) -> None:
    one, again, other = (make_tasks(suite, rows=10, seed=seed) for seed in (1, 1, 2))
    assert [task.sha256 for task in one] == [task.sha256 for task in again]
    assert not {task.sha256 for task in one} & {task.sha256 for task in other}


@pytest.mark.parametrize("suite", MINI)
def test_no_answer_is_right_too_often_to_tell_anything(suite: str) -> None:
    for task in make_tasks(suite):
        answers = [row.get("label", row.get("answer", row.get("targets"))) for row in task.rows]
        share = max(answers.count(answer) for answer in answers) / len(answers)
        assert share < 0.65, task.name


def test_options_are_distinct_and_hold_the_answer() -> None:
    for suite in ("mini-mmlu", "mini-bigbench"):
        for task in make_tasks(suite):
            for row in task.rows:
                options = row.get("choices", row.get("multiple_choice_targets"))
                assert len(set(options)) == len(options) > 1


def test_altered_claims_differ_from_true_ones() -> None:
    _, rte = make_tasks("mini-glue")
    for row in rte.rows:
        known = all(word in row["sentence1"] for word in row["sentence2"].split()[:1])
        assert known or row["label"] == 1


def test_made_tasks_never_bear_the_real_names() -> None:
    names = {task.name for suite in MINI for task in make_tasks(suite, rows=2)}
    assert all(name.startswith("mini_") for name in names)
