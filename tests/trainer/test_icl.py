"""In-context learning: what is asked, what it costs, and that nothing held out is shown."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.config import Data, RunConfig
from polygraft.trainer.data import Example
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.frozen_base import load_tokenizer
from polygraft.trainer.generate import Answer
from polygraft.trainer.icl import Asked, score_in_context
from polygraft.trainer.run import train
from polygraft.trainer.scoring import Prompt
from polygraft.trainer.shots import fill, with_shots
from polygraft.trainer.source import Source, build_recipe, load_source

CHAT: Prompt = {"segments": [{"text": "Do.\n"}, {"var": "x"}], "wrap": "chat", "defaults": {}}
PLAIN: Prompt = {"segments": [{"var": "x"}, {"text": " ="}], "wrap": "none", "defaults": {}}


def row(number: int) -> Example:
    return Example(f"r{number}", f"g{number}", {"x": f"in {number}"}, f"out {number}", "here")


@pytest.fixture(scope="module")
def dsum() -> Source:
    return load_source(Data(task="builtin:dsum"))


def test_in_a_chat_each_solved_row_is_a_turn_with_its_answer() -> None:
    prompt, asked = with_shots({**CHAT, "system": "Be brief."}, [row(1), row(2)], row(3))
    assert prompt["segments"] == CHAT["segments"]
    assert [(turn["role"], turn["content"]) for turn in asked.messages] == [
        ("system", "Be brief."),
        ("user", "Do.\nin 1"),
        ("assistant", "out 1"),
        ("user", "Do.\nin 2"),
        ("assistant", "out 2"),
        ("user", "Do.\nin 3"),
    ]
    assert (asked.id, asked.completion) == ("r3", "out 3")


def test_in_plain_text_solved_rows_stand_above_and_a_blank_line_ends_the_answer() -> None:
    prompt, asked = with_shots(PLAIN, [row(1), row(2)], row(3))
    assert fill(prompt, asked) == "in 1 =out 1\n\nin 2 =out 2\n\nin 3 ="
    assert prompt["stop_sequences"] == ["\n\n"]
    assert with_shots(PLAIN, [], row(3)) == (PLAIN, row(3))


def test_without_shots_the_base_is_asked_as_in_training(dsum: Source) -> None:
    tokenizer = load_tokenizer("builtin:nano")
    from polygraft.trainer.encode import encode_prompt

    recipe = build_recipe(dsum.prompt, tokenizer)
    shown = dsum.splits.test[0]
    _, asked = with_shots(dsum.prompt, [dsum.splits.train[0]], shown)
    alone = encode_prompt(shown, recipe, tokenizer)
    behind = encode_prompt(asked, recipe, tokenizer)
    assert behind[0] == alone[0] == tokenizer.bos_token_id
    assert behind[-len(alone) + 1 :] == alone[1:]


def counting(dsum: Source, window: int, seen: list[tuple[Prompt, list[Example]]]) -> Asked:
    """Counts ten tokens a turn, and answers with the right completion."""

    def ask(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
        seen.append((prompt, list(rows)))
        return [Answer([], r.completion, True) for r in rows]

    def count(prompt: Prompt, rows: Sequence[Example]) -> list[int]:
        return [10 * max(1, len(r.messages)) + len(r.id) % 2 for r in rows]

    return Asked("fake", ask, count, window)


def test_solved_rows_are_train_rows_and_draws_are_nested_and_repeatable(dsum: Source) -> None:
    seen: list[tuple[Prompt, list[Example]]] = []
    one = score_in_context(counting(dsum, 500, seen), dsum, shots=(0, 1, 2), rows=5)
    again = score_in_context(counting(dsum, 500, []), dsum, shots=(2, 1, 0), rows=5)
    assert [score.as_json() | {"milliseconds": 0} for score in one] == [
        score.as_json() | {"milliseconds": 0} for score in again
    ]
    assert [(score.shots, len(score.draws)) for score in one] == [(0, 1), (1, 3), (2, 3)]
    for single, double in zip(one[1].draws, one[2].draws, strict=True):
        assert single.shots == double.shots[:1]
    train_ids = {r.id for r in dsum.splits.train}
    assert {name for draw in one[2].draws for name in draw.shots} <= train_ids
    held_out = {r.completion for r in dsum.splits.test}
    for _, rows in seen:
        for asked in rows:
            shown = [t["content"] for t in asked.messages if t["role"] == "assistant"]
            assert not held_out & set(shown)
    other = score_in_context(counting(dsum, 500, []), dsum, shots=(1,), rows=5, seed=1)
    assert other[0].draws[0].shots != one[1].draws[0].shots


def test_rows_that_no_longer_fit_are_named_and_count_as_wrong(dsum: Source) -> None:
    # Two shots are five turns: 50 tokens, one more for ids of odd length; an answer has 64.
    seen: list[tuple[Prompt, list[Example]]] = []
    scores = score_in_context(counting(dsum, 114, seen), dsum, shots=(0, 2, 4), rows=12, draws=1)
    ids = [r.id for r in dsum.splits.test[:12]]
    odd = tuple(name for name in ids if len(name) % 2)
    assert 0 < len(odd) < 12
    assert scores[0].draws[0].too_long == ()
    assert scores[1].draws[0].too_long == odd
    assert scores[1].draws[0].subject.value("exact_match") == pytest.approx(
        100 * (12 - len(odd)) / 12
    )
    assert scores[2].too_long == 12
    assert (scores[2].mean, scores[2].milliseconds) == (0.0, None)
    assert scores[2].window_share == pytest.approx(100 * (90 + len(odd) / 12) / 114)
    assert all(len(r.messages) < 9 for _, rows in seen for r in rows)  # never asked


def test_more_shots_than_train_rows_are_refused(dsum: Source) -> None:
    with pytest.raises(RecipeError, match="601 shots are more than the 600 train rows"):
        score_in_context(counting(dsum, 99, []), dsum, shots=(601,))


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["icl", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_scores_a_base_beside_adapters_and_draws_it(
    make_config: Callable[..., RunConfig], tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    method = {"kind": "prompt", "virtual_tokens": 6, "init": "vocab"}
    made = train(make_config(method=method, optim={"epochs": 1, "batch": 64}), score_test=False)
    picture = tmp_path / "icl.png"
    code, output, errors = run(
        tiny_base, "--data", toy_file, "--shots", "0,1,12", "--draws", "2", "--rows", "4",
        "--max-output-tokens", "8", "--beside", made.directory, "--base", tiny_base,
        "--picture", picture, "--json",
    )  # fmt: skip
    assert code == 0, errors
    record = json.loads(output)
    zero, one, many = record["shots"]
    assert (zero["shots"], one["shots"], many["shots"]) == (0, 1, 12)
    assert zero["window"] == 256
    assert zero["prompt_tokens"] < one["prompt_tokens"] < many["prompt_tokens"]
    assert one["window_share"] == pytest.approx(100 * one["prompt_tokens"] / 256, abs=0.1)
    (adapter,) = record["beside"]
    assert adapter["prompt_tokens"] == pytest.approx(zero["prompt_tokens"] + 6, abs=0.05)
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, output, _ = run(tiny_base, "--data", toy_file, "--shots", "0", "--rows", "4")
    assert code == 0
    assert "shots" in output
    assert "4 held-out rows" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["builtin:nano"], "give one of --task, --data and --recipe"),
        (["builtin:nano", "--task", "builtin:dsum", "--shots", "a"], "--shots must be numbers"),
        (["builtin:nano", "--task", "builtin:poetry"], "no built-in task 'poetry'"),
    ],
)
def test_mistakes_end_with_a_sentence(arguments: list[str], says: str) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    assert says in errors
