"""Constrained outputs of random models at high temperatures: every one satisfies its constraint."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING

import pytest
from engine_support.constraints import compile_all, is_valid, random_schema
from engine_support.harness import Harness
from tiny_models import EOS, byte_tokenizer

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.constraint import ConstraintKind
from polygraft.server.engine.messages import FinishReason, Sampling

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")
STOP = frozenset({EOS})
TOKENIZER = byte_tokenizer()


def text_of(harness: Harness, name: str) -> str:
    """What the request says; it ended because its constraint is satisfied."""
    answer = harness.answers[name]
    assert answer.error is None
    assert answer.finish_reason is FinishReason.STOP
    tokens = answer.token_ids
    return str(TOKENIZER.decode(tokens[:-1] if tokens[-1] == EOS else tokens))


def hot(seed: int, **changes: float) -> Sampling:
    return Sampling(temperature=2.0, seed=seed, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("speculation", [False, True])
def test_220_answers_under_random_schemas_are_valid(tiny_base: TinyBase, speculation: bool) -> None:
    generator = random.Random(5)
    schemas = [random_schema(generator) for _ in range(44)]
    # Random weights like whitespace as much as anything else; without it answers are short.
    texts = [json.dumps({"x-guidance": {"whitespace_flexible": False}, **s}) for s in schemas]
    constraints = compile_all(ConstraintKind.JSON_SCHEMA, texts)
    harness = tiny_base.harness(max_running=40, speculation_max_rows=256)
    for i, constraint in enumerate(constraints):
        for j, kind in enumerate(KINDS):
            harness.submit(
                f"{i} {j}",
                [1, 2, 3 + j],
                adapter=kind,
                max_output_tokens=230,
                stop=STOP if j % 2 else frozenset(),
                sampling=hot(5 * i + j),
                constraint=constraint,
                speculation=speculation,
            )
    harness.run()
    harness.assert_clean()
    assert (harness.engine.stats().speculation.accepted > 0) == speculation
    for i, schema in enumerate(schemas):
        for j in range(len(KINDS)):
            text = text_of(harness, f"{i} {j}")
            assert is_valid(json.loads(text), schema), (text, schema)


def test_whitespace_comes_to_an_end(tiny_base: TinyBase) -> None:
    [constraint] = compile_all(ConstraintKind.JSON_SCHEMA, ['{"type": "array", "maxItems": 1}'])
    harness = tiny_base.harness()
    bias = tuple((token, 90.0) for token in TOKENIZER.encode(" "))
    harness.submit(
        "r", [1], max_output_tokens=60, sampling=Sampling(logit_bias=bias), constraint=constraint
    )
    harness.run()
    text = TOKENIZER.decode(harness.answers["r"].token_ids)
    assert text.startswith("[" + " " * 40)
    assert text[41] != " "


PATTERNS = [
    "[0-9]{3}-[a-f]{2,8}",
    "(yes|no|maybe)( indeed)?",
    "a{0,5}b",
    "żółw[ 0-9]{1,4}",
    "-?(0|[1-9][0-9]{0,4})(\\.[0-9]{1,3})?",
]


def test_answers_match_the_whole_regex(tiny_base: TinyBase) -> None:
    constraints = compile_all(ConstraintKind.REGEX, PATTERNS)
    harness = tiny_base.harness()
    for i, constraint in enumerate(constraints):
        for j in range(8):
            harness.submit(
                f"{i} {j}",
                [9, j],
                adapter=KINDS[j % 5],
                max_output_tokens=60,
                stop=STOP,
                sampling=hot(j, presence_penalty=0.5, repetition_penalty=1.2),
                constraint=constraint,
            )
    harness.run()
    for i, pattern in enumerate(PATTERNS):
        texts = {text_of(harness, f"{i} {j}") for j in range(8)}
        assert all(re.fullmatch(pattern, text) for text in texts), (pattern, texts)
        assert len(texts) > 1


def test_answers_are_one_of_the_choices(tiny_base: TinyBase) -> None:
    choices = ["red", "re", 'a "quoted"\nline\\', "日本 😀", " lead"]
    [constraint] = compile_all(ConstraintKind.CHOICE, [json.dumps(choices)])
    harness = tiny_base.harness()
    for j in range(40):
        harness.submit(
            str(j), [j], max_output_tokens=40, stop=STOP, sampling=hot(j), constraint=constraint
        )
    harness.run()
    texts = {text_of(harness, str(j)) for j in range(40)}
    assert texts <= set(choices)
    assert len(texts) >= 4


def test_answers_follow_the_grammar(tiny_base: TinyBase) -> None:
    grammar = """
        start: sum
        sum: product (("+" | "-") product)?
        product: atom ("*" atom)?
        atom: NUMBER | "(" sum ")"
        NUMBER: /[1-9][0-9]?/
    """
    [constraint] = compile_all(ConstraintKind.GRAMMAR, [grammar])
    harness = tiny_base.harness()
    closing = tuple((token, 4.0) for token in TOKENIZER.encode(")"))
    for j in range(20):
        harness.submit(
            str(j),
            [j],
            max_output_tokens=150,
            stop=STOP,
            sampling=Sampling(1.5, seed=j, logit_bias=closing),
            constraint=constraint,
        )
    harness.run()
    for j in range(20):
        text = text_of(harness, str(j))
        assert set(text) <= set("0123456789+-*()")
        assert isinstance(eval(text), int)


def test_neither_batch_nor_preemption_changes_a_constrained_answer(tiny_base: TinyBase) -> None:
    schemas = ['{"type": "object", "properties": {"a": {"type": "string"}}}', "true", "{}"]
    constraints = compile_all(ConstraintKind.JSON_SCHEMA, schemas)
    answers = []
    guessing = {"speculation": "auto", "speculation_max_rows": 64}
    for settings in ({}, {"kv_bytes": 16 * 6144}, {"max_running": 1}, guessing):
        harness = tiny_base.harness(**settings)
        for i in range(12):
            harness.submit(
                str(i),
                [i] * 25,
                adapter=KINDS[i % 5],
                max_output_tokens=60,
                stop=STOP,
                sampling=hot(i, repetition_penalty=1.1),
                constraint=constraints[i % 3] if i % 4 else None,
            )
        harness.run()
        harness.assert_clean()
        assert (harness.engine.stats().preemptions > 0) == ("kv_bytes" in settings)
        answers.append([harness.answers[str(i)].token_ids for i in range(12)])
        assert (harness.engine.stats().speculation.accepted > 0) == (settings is guessing)
    assert answers[1:] == answers[:1] * 3


def test_text_that_a_constraint_forces_costs_few_steps(tiny_base: TinyBase) -> None:
    [constraint] = compile_all(ConstraintKind.REGEX, ["[ab](, and then comes [cd])+"])
    answers, num_steps = [], []
    for speculation in (False, True):
        harness = tiny_base.harness()
        harness.submit(
            "r",
            [1, 2],
            max_output_tokens=81,
            sampling=hot(4),
            constraint=constraint,
            speculation=speculation,
        )
        num_steps.append(sum(iter(harness.run_step, False)))
        answers.append(harness.answers["r"].token_ids)
    stats = harness.engine.stats().speculation
    assert answers[0] == answers[1]
    assert stats.accepted == 81 - num_steps[1]
    assert num_steps[1] <= 20
    assert num_steps[0] == 81


def test_a_satisfied_constraint_ends_before_the_least_length(tiny_base: TinyBase) -> None:
    complete, more = compile_all(ConstraintKind.REGEX, ["ab", "a+"])
    harness = tiny_base.harness()
    for name, constraint in (("complete", complete), ("more", more)):
        harness.submit(
            name,
            [1],
            max_output_tokens=30,
            min_output_tokens=10,
            stop=STOP,
            sampling=Sampling(logit_bias=((EOS, 90.0),)),
            constraint=constraint,
        )
    harness.run()
    assert text_of(harness, "complete") == "ab"
    assert text_of(harness, "more") == "a" * 10


def test_a_stop_id_that_is_text_cuts_the_answer_short(tiny_base: TinyBase) -> None:
    [constraint] = compile_all(ConstraintKind.REGEX, ["ab+c"])
    harness = tiny_base.harness()
    b, c = TOKENIZER.encode("b") + TOKENIZER.encode("c")
    sampling = Sampling(logit_bias=((c, 90.0),))
    harness.submit("r", [1], stop=frozenset({b}), sampling=sampling, constraint=constraint)
    harness.run()
    assert harness.answers["r"].token_ids == [*TOKENIZER.encode("a"), b]
    assert harness.answers["r"].finish_reason is FinishReason.STOP


def test_a_constraint_that_cannot_be_followed_ends_its_own_sequence_only(
    tiny_base: TinyBase,
) -> None:
    late, plain = compile_all(
        ConstraintKind.REGEX, ["b(.{0,2000}x.{0,2000}y.{0,2000}){20}", "[a-z]{30}"]
    )
    harness = tiny_base.harness()
    x = tuple((token, 50.0) for token in TOKENIZER.encode("xy"))
    sampling = Sampling(1.0, logit_bias=x)
    harness.submit("late", [1], max_output_tokens=200, sampling=sampling, constraint=late)
    harness.submit("plain", [1], max_output_tokens=200, constraint=plain)
    harness.run()
    harness.assert_clean()
    assert isinstance(harness.answers["late"].error, InvalidRequest)
    assert harness.answers["late"].token_ids
    assert len(text_of(harness, "plain")) == 30


@pytest.mark.parametrize("num_top", [None, 2])
def test_log_probabilities_are_those_before_the_constraint(
    tiny_base: TinyBase, num_top: int | None
) -> None:
    [constraint] = compile_all(ConstraintKind.REGEX, ["zzz"])
    harness = tiny_base.harness()
    harness.submit("r", [1, 2], constraint=constraint, top_logprobs=num_top, prompt_logprobs=1)
    harness.run()
    entries = harness.answers["r"].logprobs
    assert len(entries) == (0 if num_top is None else 3)
    for entry, row in zip(entries, harness.answers["r"].logits[1:], strict=False):
        expected = row.double().log_softmax(-1)
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-5)
        assert entry.rank > 1
