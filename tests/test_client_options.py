"""What no message can hold is refused by name, before anything is sent."""

from __future__ import annotations

import re

import pytest

from polygraft.client import Client, GenerateOptions, InvalidRequest, ScoreItem
from polygraft.client.options import write_score

CLIENT = Client("nowhere")


def test_an_option_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
        CLIENT.generate("Hi", temprature=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'logprobs'"):
        CLIENT.stream("Hi", logprobs=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"priority": "urgent"}, "priority: 'urgent' is no priority; allowed: low, normal, high."),
        ({"priority": 3}, "priority: 3 is no priority"),
        ({"regex": "a", "grammar": "b"}, "constraint: at most one constraint"),
        ({"logit_bias": {-(2**40): 1.0}}, "logit_bias: a value of type dict cannot be sent: "),
        ({"adapters": {"a": "much"}}, "adapters: a value of type dict cannot be sent: "),
        ({"adapters": ["a", "b"]}, "adapters: a value of type list cannot be sent: "),
        ({"seed": 1, "temperature": "hot"}, "temperature: a value of type str cannot be sent: "),
        ({"top_logprobs": 2.5}, "top_logprobs: a value of type float cannot be sent: "),
        ({"time_limit": float("nan")}, "time_limit: a value of type float cannot be sent: "),
        ({"stop": 5, "n": 2}, "stop: a value of type int cannot be sent: "),
    ],
)
def test_an_option_that_no_message_can_hold_is_refused_by_name(
    options: GenerateOptions, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(says)):
        CLIENT.generate("Hi", **options)


def test_an_input_that_no_message_can_hold_is_refused_by_name() -> None:
    for prompt in (5, ["Hi"], "\ud800"):
        with pytest.raises(InvalidRequest, match="prompt: a value of type "):
            CLIENT.generate(prompt, temperature=0.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="token_ids: a value of type str "):
        CLIENT.generate(token_ids="abc")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="messages: a value of type list "):
        CLIENT.generate(messages=["hi"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="items: a value of type str "):
        CLIENT.score("abc")  # type: ignore[arg-type]


def test_scores_of_one_context_are_sent_as_one_item() -> None:
    items = [
        *ScoreItem.each(["a", [1, 2]], prompt="P"),
        ScoreItem("c", token_ids=[3]),
        ScoreItem("d", prompt="P"),
    ]
    message = write_score(items, "x", None, "high")
    assert [len(item.continuations) for item in message.items] == [2, 1, 1]
    assert message.items[0].continuations[1].token_ids.values == [1, 2]
    assert [item.WhichOneof("input") for item in message.items] == ["prompt", "token_ids", "prompt"]
