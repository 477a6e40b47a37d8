"""Compiling constraints: what is refused and how it is told, limits, and what is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import numpy as np
import pytest
from server_support.tokenizers import byte_fallback, byte_level, metaspace, wordpiece
from tiny_models import EOS, VOCAB_SIZE, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from polygraft.adapters.errors import InvalidRequest, Overloaded
from polygraft.server.constraints.compiler import ConstraintCompiler
from polygraft.server.constraints.matching import MatcherState
from polygraft.server.engine.constraint import Constraint, ConstraintKind

SCHEMA, REGEX = ConstraintKind.JSON_SCHEMA, ConstraintKind.REGEX
CHOICE, GRAMMAR = ConstraintKind.CHOICE, ConstraintKind.GRAMMAR


def compiler_for(tokenizer: PreTrainedTokenizerFast, max_kept: int = 8) -> ConstraintCompiler:
    return ConstraintCompiler(
        tokenizer,
        vocab_size=len(tokenizer) + 7,
        eos_token_ids=[tokenizer.eos_token_id],
        max_kept=max_kept,
    )


@pytest.fixture
async def compiler() -> AsyncIterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(
        byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=[EOS], max_kept=3
    )
    yield compiler
    compiler.close()


async def refusal(compiler: ConstraintCompiler, kind: ConstraintKind, text: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await compiler.compile(Constraint(kind, text))
    return refused.value


def follow(state: MatcherState, tokenizer: PreTrainedTokenizerFast, text: str) -> list[bool]:
    """Take the tokens of a text that is allowed; whether each prefix is accepted."""
    accepted = [state.is_accepting]
    for token in tokenizer.encode(text, add_special_tokens=False):
        assert state.allowed()[token], f"{tokenizer.decode([token])!r} of {text!r} is not allowed"
        state.advance(token)
        accepted.append(state.is_accepting)
    return accepted


@pytest.mark.parametrize(
    ("kind", "text", "what"),
    [
        (SCHEMA, '{"type": "strin"}', "Invalid type: strin"),
        (SCHEMA, '{"type": ', "it is not JSON"),
        (SCHEMA, "[1]", "a schema is an object"),
        (SCHEMA, "false", "no value satisfies"),
        (SCHEMA, '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        (SCHEMA, '{"$ref": "http://example.org/schema"}', "http://example.org/schema"),
        (SCHEMA, '{"allOf": [{"type": "string"}, {"type": "number"}]}', "Unsatisfiable"),
        (SCHEMA, '{"type": "string", "format": "colour"}', "colour"),
        (SCHEMA, "[" * 5000, "nested too deep|not JSON"),
        (REGEX, "(a", "unclosed group"),
        (REGEX, r"(a)\1", "backreferences are not supported"),
        (REGEX, "(?=a)b", "look-around"),
        (REGEX, "((a{100}){100}){100}", "too many expressions"),
        (GRAMMAR, "start: other", 'unknown name: "other"'),
        (GRAMMAR, 'first: "a"', "start"),
    ],
)
async def test_what_cannot_be_compiled_is_refused_with_its_reason(
    compiler: ConstraintCompiler, kind: ConstraintKind, text: str, what: str
) -> None:
    error = await refusal(compiler, kind, text)
    assert error.code == "INVALID_CONSTRAINT"
    assert error.item == f"constraint.{kind.value}"
    with pytest.raises(AssertionError, match=what):
        raise AssertionError(error.message)
    assert "\n" not in error.message
    assert len(error.message) < 400


async def test_a_text_that_takes_for_ever_is_refused_and_the_next_one_compiles(
    compiler: ConstraintCompiler,
) -> None:
    patterns = [f"a.*{a}.*{b}" for a in "bcdefgh" for b in "ijklmno"]
    endless = {"allOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}
    error = await refusal(compiler, SCHEMA, json.dumps(endless))
    assert "more than 2 s" in error.message
    assert (await compiler.compile(Constraint(REGEX, "ab"))).start().allowed()[ord("a") - 33]


async def test_a_text_nested_without_end_does_not_take_the_server_down(
    compiler: ConstraintCompiler,
) -> None:
    for kind, text in (
        (SCHEMA, '{"items":' * 900 + "{}" + "}" * 900),
        (REGEX, "(" * 4000 + "a" + ")" * 4000),
        (GRAMMAR, "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    ):
        error = await refusal(compiler, kind, text)
        assert error.code == "INVALID_CONSTRAINT"
    await compiler.compile(Constraint(REGEX, "ab"))


async def test_equal_constraints_are_compiled_once_and_few_are_kept(
    compiler: ConstraintCompiler,
) -> None:
    texts = ["a", "b", "c", "d"]
    first = [await compiler.compile(Constraint(REGEX, text)) for text in texts[:3]]
    assert await compiler.compile(Constraint(REGEX, "a")) is first[0]
    await compiler.compile(Constraint(REGEX, "d"))  # in place of "b", asked for longest ago
    assert await compiler.compile(Constraint(REGEX, "a")) is first[0]
    assert await compiler.compile(Constraint(REGEX, "b")) is not first[1]
    assert await compiler.compile(Constraint(CHOICE, '["a"]')) is not first[0]


async def test_those_that_ask_together_get_the_same(compiler: ConstraintCompiler) -> None:
    same = [compiler.compile(Constraint(REGEX, "x+")) for _ in range(10)]
    assert len(set(await asyncio.gather(*same))) == 1


async def test_states_of_one_constraint_do_not_see_each_other(
    compiler: ConstraintCompiler,
) -> None:
    tokenizer = byte_tokenizer()
    compiled = await compiler.compile(Constraint(REGEX, "ab*c"))
    one, other = compiled.start(), compiled.start()
    assert follow(one, tokenizer, "abbc") == [False, False, False, False, True]
    assert one.is_finished
    assert not other.is_finished
    assert follow(other, tokenizer, "ac") == [False, False, True]


async def test_ends_are_told_and_end_tokens_are_not_judged(compiler: ConstraintCompiler) -> None:
    tokenizer = byte_tokenizer()
    state = (await compiler.compile(Constraint(REGEX, "a{0,2}"))).start()
    assert state.is_accepting
    assert not state.is_finished
    assert not state.allowed()[EOS]
    assert follow(state, tokenizer, "aa") == [True, True, True]
    assert state.is_finished
    assert not state.allowed().any()


async def test_a_mask_is_the_callers_own(compiler: ConstraintCompiler) -> None:
    state = (await compiler.compile(Constraint(REGEX, "a"))).start()
    state.allowed()[:] = True
    assert np.flatnonzero(state.allowed()).tolist() == byte_tokenizer().encode("a")


async def test_a_grammar_that_grows_too_complex_ends_its_own_sequence(
    compiler: ConstraintCompiler,
) -> None:
    tokenizer = byte_tokenizer()
    late = Constraint(REGEX, "b(.{0,2000}x.{0,2000}y.{0,2000}){20}")
    state = (await compiler.compile(late)).start()
    with pytest.raises(InvalidRequest, match="too complex to follow"):
        follow(state, tokenizer, "b" + "xaybx" * 300)


@pytest.mark.parametrize("make", [byte_tokenizer, byte_level, byte_fallback, metaspace])
async def test_tokenizers_of_all_kinds_of_bases_can_be_constrained(
    make: type[PreTrainedTokenizerFast],
) -> None:
    tokenizer = make()
    compiler = compiler_for(tokenizer)
    text = "a plain  sentence"
    state = (await compiler.compile(Constraint(REGEX, "[a-z]( {1,2}[a-z]+){2}"))).start()
    # The longest token that is allowed next, always: as a model would write it.
    pieces = sorted(range(len(tokenizer)), key=lambda t: -len(tokenizer.convert_ids_to_tokens(t)))
    tokens: list[int] = []
    while tokenizer.decode(tokens) != text:
        mask = state.allowed()
        token = next(
            t for t in pieces if mask[t] and text.startswith(tokenizer.decode([*tokens, t]))
        )
        tokens.append(token)
        state.advance(token)
    assert state.is_accepting
    compiler.close()


async def test_a_tokenizer_that_cannot_be_constrained_is_refused_by_name() -> None:
    compiler = compiler_for(wordpiece())
    error = await refusal(compiler, REGEX, "a")
    assert error.code == "UNSUPPORTED_OPTION"
    assert "decoder" in error.message
    compiler.close()


async def test_nothing_is_left_running_after_close() -> None:
    compiler = compiler_for(byte_tokenizer())
    await compiler.compile(Constraint(REGEX, "a"))
    assert compiler._trial is not None
    process = compiler._trial._process
    assert process is not None
    assert process.poll() is None
    compiler.close()
    compiler.close()
    assert process.poll() is not None


async def test_too_many_that_wait_are_refused_at_once() -> None:
    compiler = ConstraintCompiler(
        byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=[EOS], max_waiting=2
    )
    try:
        constraints = [Constraint(REGEX, f"a{{{n}}}") for n in range(1, 5)]
        results = await asyncio.gather(
            *(compiler.compile(constraint) for constraint in constraints), return_exceptions=True
        )
        assert [isinstance(result, Overloaded) for result in results] == [False, False, True, True]
        await compiler.compile(constraints[3])  # the places are free again
    finally:
        compiler.close()
