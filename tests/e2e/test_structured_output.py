"""Structured output over real gRPC on the bundled base, which knows nothing of JSON."""

from __future__ import annotations

import json
import re

import pytest

from polygraft.client import Client, InvalidRequest

PROMPT = "Anna: Are you at home? Ben: No, at work."
HOUR = {"type": "integer", "minimum": 0, "maximum": 23}
SCHEMA = {
    "type": "object",
    "properties": {
        "speaker": {"enum": ["Anna", "Ben"]},
        "place": {"type": "string", "minLength": 1, "maxLength": 12},
        "hours": {"type": "array", "items": HOUR, "minItems": 2, "maxItems": 2},
    },
    "required": ["speaker", "place", "hours"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.8])
def test_json_follows_its_schema(nano: Client, temperature: float, ignore_eos: bool) -> None:
    answer = nano.generate(
        PROMPT,
        json_schema=json.dumps(SCHEMA),
        n=4,
        seed=2,
        temperature=temperature,
        max_output_tokens=250,
        ignore_eos=ignore_eos,
        logit_bias=dict.fromkeys(nano.tokenize(" \n\t"), -100.0),
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.text)
        assert value["speaker"] in ("Anna", "Ben")
        assert 1 <= len(value["place"]) <= 12
        assert len(value["hours"]) == 2
        assert all(hour in range(24) for hour in value["hours"])
        assert value.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]


def test_the_last_token_of_a_finished_constraint_is_shown_in_a_stream(nano: Client) -> None:
    stream = nano.stream(PROMPT, regex="[0-9]{4}-[0-9]{2}!", temperature=1.5, seed=1)
    text = "".join(piece.text for piece in stream)
    assert re.fullmatch("[0-9]{4}-[0-9]{2}!", text)
    assert stream.generation is not None
    assert stream.generation.finish_reason == "stop"


def test_one_of_the_choices(nano: Client) -> None:
    choices = ["at home", "at work", "at the pub"]
    answer = nano.generate(PROMPT, choice=choices, n=8, temperature=4.0, seed=1)
    texts = {choice.text for choice in answer.choices}
    assert texts <= set(choices)
    assert len(texts) > 1


def test_text_of_a_grammar(nano: Client) -> None:
    grammar = 'start: NAME ": " WORD+ "."\nNAME: "Anna" | "Ben"\nWORD: /[a-z]{1,5} ?/'
    answer = nano.generate(
        PROMPT, grammar=grammar, temperature=1.0, seed=4, max_output_tokens=200, ignore_eos=True
    )
    assert re.fullmatch(r"(Anna|Ben): ([a-z]{1,5} ?)+\.?", answer.text)


@pytest.mark.parametrize(
    ("options", "item", "what"),
    [
        ({"regex": "(a"}, "constraint.regex", "unclosed group"),
        ({"json_schema": '{"type": "strin"}'}, "constraint.json_schema", "Invalid type"),
        ({"grammar": "start: nothing"}, "constraint.grammar", "nothing"),
    ],
)
def test_a_constraint_that_cannot_be_compiled_is_refused_before_anything_runs(
    nano: Client, options: dict[str, str], item: str, what: str
) -> None:
    with pytest.raises(InvalidRequest, match=what) as refused:
        nano.generate(PROMPT, **options)  # type: ignore[arg-type]
    assert refused.value.code == "INVALID_CONSTRAINT"
    assert refused.value.metadata["item"] == item
