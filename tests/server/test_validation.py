"""Refusals that need nothing but the request: the field, the value and the limit are named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.constraint import Constraint, ConstraintKind
from polygraft.server.requests import (
    AdapterSelection,
    GenerateRequest,
    Messages,
    OutputOptions,
    Prompt,
    SamplingOptions,
    ScoreItem,
    ScoreRequest,
    StoppingOptions,
    TokenIds,
    Variables,
    WeightedReference,
)
from polygraft.server.validation import RequestLimits, RequestValidator

VOCAB_SIZE = 100
VALIDATOR = RequestValidator(RequestLimits(), vocab_size=VOCAB_SIZE)


def request(**changes: Any) -> GenerateRequest:
    return GenerateRequest(**{"input": Prompt("Hi"), **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, 10.1, math.nan, math.inf, -math.inf, -0.0)),
        *(("top_p", value) for value in (0.0, -0.0, -1.0, 1.01, math.nan, math.inf)),
        *(("top_k", value) for value in (-1, -(2**31))),
        *(("min_p", value) for value in (-0.1, -0.0, 1.01, math.nan, math.inf)),
        *(("repetition_penalty", value) for value in (0.0, -1.0, 10.1, math.nan, math.inf)),
        *(
            (field, value)
            for field in ("presence_penalty", "frequency_penalty")
            for value in (-2.1, 2.1, -0.0, math.nan, math.inf, -math.inf)
        ),
        *(("n", value) for value in (0, -1, 9)),
        *(("seed", value) for value in (-1, -(2**63), 2**53)),
    ],
)
def test_sampling_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(sampling=SamplingOptions(**{field: value})))  # type: ignore[arg-type]
    assert caught.value.code == "INVALID_SAMPLING"
    assert caught.value.item == f"sampling.{field}"
    assert caught.value.allowed is not None


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(),
        SamplingOptions(temperature=0.0, top_p=1.0, top_k=0, seed=0),
        SamplingOptions(temperature=10.0, top_p=1e-6, top_k=2**31 - 1, seed=2**53 - 1),
        SamplingOptions(min_p=0.0, repetition_penalty=1e-3, presence_penalty=-2.0, n=1),
        SamplingOptions(min_p=1.0, repetition_penalty=10.0, frequency_penalty=2.0, n=8),
        SamplingOptions(logit_bias={0: -100.0, VOCAB_SIZE - 1: 100.0}),
    ],
)
def test_sampling_at_the_limits_is_taken(sampling: SamplingOptions) -> None:
    VALIDATOR.check_generate(request(sampling=sampling))


@pytest.mark.parametrize(
    ("bias", "item", "code"),
    [
        ({VOCAB_SIZE: 1.0}, "sampling.logit_bias", "INVALID_TOKEN"),
        ({-1: 1.0}, "sampling.logit_bias", "INVALID_TOKEN"),
        ({5: 100.5}, "sampling.logit_bias[5]", "INVALID_SAMPLING"),
        ({5: -0.0}, "sampling.logit_bias[5]", "INVALID_SAMPLING"),
        ({5: math.nan}, "sampling.logit_bias[5]", "INVALID_SAMPLING"),
        ({5: -math.inf}, "sampling.logit_bias[5]", "INVALID_SAMPLING"),
    ],
)
def test_a_bias_out_of_range_is_refused(bias: dict[int, float], item: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(sampling=SamplingOptions(logit_bias=bias)))
    assert (caught.value.item, caught.value.code) == (item, code)


def test_a_bias_has_a_thousand_entries_and_some() -> None:
    validator = RequestValidator(RequestLimits(), vocab_size=2000)
    entries = dict.fromkeys(range(1024), 1.0)
    validator.check_generate(request(sampling=SamplingOptions(logit_bias=entries)))
    entries[1999] = 1.0
    with pytest.raises(InvalidRequest) as caught:
        validator.check_generate(request(sampling=SamplingOptions(logit_bias=entries)))
    assert (caught.value.code, caught.value.allowed) == ("LIMIT_EXCEEDED", 1024)


@pytest.mark.parametrize("field", ["top_logprobs", "prompt_logprobs"])
def test_so_many_alternatives_are_shown_at_most(field: str) -> None:
    for value in (-1, 21):
        with pytest.raises(InvalidRequest) as caught:
            VALIDATOR.check_generate(request(output=OutputOptions(**{field: value})))  # type: ignore[arg-type]
        assert (caught.value.item, caught.value.allowed) == (f"output.{field}", "0 to 20")
    VALIDATOR.check_generate(request(output=OutputOptions(**{field: 20})))  # type: ignore[arg-type]


def composition(*shares: tuple[str, float]) -> AdapterSelection:
    return AdapterSelection(composition=tuple(WeightedReference(*share) for share in shares))


@pytest.mark.parametrize(
    ("adapters", "item"),
    [
        (AdapterSelection("a", (WeightedReference("b"),)), "adapters"),
        (composition(*((str(n), 1.0) for n in range(5))), "adapters"),
        (composition(("a", 1.0), ("", 1.0)), "adapters[1].adapter"),
        (composition(("a", 1.0), ("x" * 257, 1.0)), "adapters[1].adapter"),
        *(
            (composition(("a", weight)), "adapters[0].weight")
            for weight in (4.1, -4.1, -0.0, math.nan, math.inf)
        ),
    ],
)
def test_compositions_out_of_range_are_refused(adapters: AdapterSelection, item: str) -> None:
    for check in (
        lambda: VALIDATOR.check_generate(request(adapters=adapters)),
        lambda: VALIDATOR.check_score(ScoreRequest((GOOD,), adapters)),
        lambda: VALIDATOR.check_tokenize(Prompt("a"), adapters),
    ):
        with pytest.raises(InvalidRequest) as caught:
            check()
        assert caught.value.item == item


def test_a_composition_at_the_limits_is_taken() -> None:
    VALIDATOR.check_generate(
        request(adapters=composition(("a", 4.0), ("b", -4.0), ("c", 0.0), ("d", 1.0)))
    )


@pytest.mark.parametrize(
    ("constraint", "item"),
    [
        (Constraint(ConstraintKind.JSON_SCHEMA, " " * ((64 << 10) + 1)), "constraint.json_schema"),
        (Constraint(ConstraintKind.JSON_SCHEMA, ""), "constraint.json_schema"),
        (Constraint(ConstraintKind.REGEX, "é" * ((4 << 10) + 1)), "constraint.regex"),
        (Constraint(ConstraintKind.GRAMMAR, "x" * ((64 << 10) + 1)), "constraint.grammar"),
        (Constraint(ConstraintKind.CHOICE, "[]"), "constraint.choice"),
        (Constraint(ConstraintKind.CHOICE, '["a", ""]'), "constraint.choice.values[1]"),
        (Constraint(ConstraintKind.CHOICE, '["a", "a"]'), "constraint.choice.values[1]"),
        (
            Constraint(ConstraintKind.CHOICE, json.dumps([str(n) for n in range(1025)])),
            "constraint.choice",
        ),
        (Constraint(ConstraintKind.CHOICE, json.dumps(["x" * (1 << 17)])), "constraint.choice"),
    ],
)
def test_constraints_over_the_limits_are_refused(constraint: Constraint, item: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(constraint=constraint))
    assert caught.value.item == item


def test_detokenizing_has_a_limit() -> None:
    VALIDATOR.check_detokenize((0,) * (1 << 16))
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_detokenize((0,) * ((1 << 16) + 1))
    assert (caught.value.code, caught.value.allowed) == ("LIMIT_EXCEEDED", 1 << 16)
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_detokenize((VOCAB_SIZE,))
    assert caught.value.code == "INVALID_TOKEN"


@pytest.mark.parametrize(
    ("stopping", "item"),
    [
        (StoppingOptions(min_output_tokens=-1), "stopping.min_output_tokens"),
        (StoppingOptions(max_output_tokens=0), "stopping.max_output_tokens"),
        (StoppingOptions(max_output_tokens=-5), "stopping.max_output_tokens"),
        (StoppingOptions(stop_sequences=("x",) * 17), "stopping.stop_sequences"),
        (StoppingOptions(stop_sequences=("a", "")), "stopping.stop_sequences[1]"),
        (StoppingOptions(stop_sequences=("é" * 129,)), "stopping.stop_sequences[0]"),
        (StoppingOptions(stop_token_ids=tuple(range(65))), "stopping.stop_token_ids"),
        (StoppingOptions(stop_token_ids=(VOCAB_SIZE,)), "stopping.stop_token_ids"),
        (StoppingOptions(stop_token_ids=(-1,)), "stopping.stop_token_ids"),
        (StoppingOptions(time_limit=0.0), "stopping.time_limit"),
        (StoppingOptions(time_limit=-1.0), "stopping.time_limit"),
    ],
)
def test_stopping_out_of_range_is_refused(stopping: StoppingOptions, item: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(stopping=stopping))
    assert caught.value.item == item


def test_stopping_at_the_limits_is_taken() -> None:
    stopping = StoppingOptions(
        max_output_tokens=1,
        stop_sequences=("é" * 128,) * 16,
        stop_token_ids=tuple(range(64)),
        time_limit=0.001,
    )
    VALIDATOR.check_generate(request(stopping=stopping))


@pytest.mark.parametrize(
    ("value", "item"),
    [
        (Prompt("é" * ((1 << 19) + 1)), "prompt"),
        (TokenIds((0, VOCAB_SIZE)), "token_ids"),
        (TokenIds((-1,)), "token_ids"),
        (Messages(()), "messages"),
        (Messages(({"role": "user", "content": "x"},) * 257), "messages"),
        (Messages(({"role": "user", "content": "x" * (1 << 20)},)), "messages"),
        (Variables({str(n): "x" for n in range(65)}), "variables"),
        (Variables({"a": "x" * ((1 << 20) + 1)}), "variables"),
    ],
)
def test_inputs_over_the_limits_are_refused(value: Any, item: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(input=value, adapters=AdapterSelection("a")))
    assert caught.value.item == item


def test_variables_need_an_adapter() -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(input=Variables({"a": "b"})))
    assert caught.value.code == "NO_RECIPE"


def test_a_reference_has_a_length() -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_generate(request(adapters=AdapterSelection("x" * 257)))
    assert caught.value.item == "adapter"


def item(context: Any, *continuations: Any) -> ScoreItem:
    return ScoreItem(context, continuations)


GOOD = item(Prompt("a"), "b")


@pytest.mark.parametrize(
    ("items", "place"),
    [
        ((), "items"),
        ((GOOD,) * 257, "items"),
        ((item(Prompt("a"), *"b" * 200),) * 2, "items"),
        ((item(Prompt("a" * (1 << 15)), *"b" * 200),), "items"),
        ((GOOD, item(Prompt("a"))), "items[1].continuations"),
        ((GOOD, item(Prompt("a"), "b", "")), "items[1].continuations[1]"),
        ((item(Prompt("a"), ()),), "items[0].continuations[0]"),
        ((item(TokenIds((VOCAB_SIZE,)), "b"),), "items[0].token_ids"),
        ((item(Prompt("a"), (VOCAB_SIZE,)),), "items[0].continuations[0].token_ids"),
    ],
)
def test_score_items_are_refused_by_their_place(items: tuple[ScoreItem, ...], place: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VALIDATOR.check_score(ScoreRequest(items))
    assert caught.value.item == place
