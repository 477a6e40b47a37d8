"""Recipes render to the ids a trainer would have used, and refuse what they do not know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_models import BOS, byte_tokenizer
from tokenizers import processors

from polygraft.adapters.errors import AdapterIncompatible, InvalidRequest
from polygraft.adapters.prompt import (
    PromptRecipe,
    encode_messages,
    encode_text,
    encode_variables,
    hash_chat_template,
    render,
)

TOKENIZER = byte_tokenizer()
USER, ASSISTANT = TOKENIZER.convert_tokens_to_ids(["<u>", "<a>"])
SEGMENTS = [{"text": "Say "}, {"var": "what"}, {"text": " to "}, {"var": "whom"}, {"text": ":"}]


def recipe(**changes: Any) -> PromptRecipe:
    return PromptRecipe(**{"segments": SEGMENTS, **changes})


def ids(text: str) -> list[int]:
    return [int(token) for token in TOKENIZER.encode(text, add_special_tokens=False)]


def test_variables_are_put_into_their_places() -> None:
    assert recipe().variables == ("what", "whom")
    variables = {"whom": "{what}", "what": "hi {whom}"}
    assert render(recipe(), variables, TOKENIZER) == "Say hi {whom} to {what}:"
    assert encode_variables(recipe(), variables, TOKENIZER) == ids("Say hi {whom} to {what}:")


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_survives(value: str) -> None:
    found = encode_variables(recipe(segments=[{"var": "x"}]), {"x": value}, TOKENIZER)
    assert TOKENIZER.decode(found) == value


def test_bos_is_added_once_by_the_recipe_and_not_by_the_tokenizer() -> None:
    """A tokenizer that adds BOS by itself must not make two, or one where training had none."""
    adding = byte_tokenizer()
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    variables = {"what": "a", "whom": "b"}
    for tokenizer in (TOKENIZER, adding):
        plain = encode_variables(recipe(), variables, tokenizer)
        assert plain == ids("Say a to b:")
        assert encode_variables(recipe(add_bos=True), variables, tokenizer) == [BOS, *plain]
    assert encode_text("hi", adding) == [BOS, *ids("hi")]
    assert encode_text("hi", TOKENIZER) == ids("hi")


def test_bos_without_a_bos_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(InvalidRequest) as caught:
        encode_variables(recipe(add_bos=True), {"what": "a", "whom": "b"}, tokenizer)
    assert caught.value.code == "NO_BOS_TOKEN"


@pytest.mark.parametrize(
    ("variables", "reason", "item"),
    [
        ({"what": "a"}, "MISSING_VARIABLE", "variables[whom]"),
        ({}, "MISSING_VARIABLE", "variables[what]"),
        ({"what": "a", "whom": "b", "who": "c"}, "UNKNOWN_VARIABLE", "variables[who]"),
        ({"what": "a", "whom": "x</s>y"}, "SPECIAL_TOKEN", "variables[whom]"),
        ({"what": "<u>", "whom": "b"}, "SPECIAL_TOKEN", "variables[what]"),
    ],
)
def test_wrong_variables_are_refused(variables: dict[str, str], reason: str, item: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_variables(recipe(), variables, TOKENIZER)
    assert (caught.value.code, caught.value.item) == (reason, item)


def test_special_tokens_can_be_allowed() -> None:
    found = encode_variables(
        recipe(allow_special_tokens=True), {"what": "<u>", "whom": "b"}, TOKENIZER
    )
    assert USER in found


def test_a_prompt_longer_than_in_training_is_refused() -> None:
    variables = {"what": "a", "whom": "b"}
    assert len(encode_variables(recipe(max_input_tokens=11), variables, TOKENIZER)) == 11
    with pytest.raises(InvalidRequest) as caught:
        encode_variables(recipe(max_input_tokens=11, add_bos=True), variables, TOKENIZER)
    assert caught.value.code == "PROMPT_TOO_LONG"
    assert (caught.value.found, caught.value.allowed) == (12, 11)


def test_chat_wraps_the_text_in_the_template_of_the_base() -> None:
    wrapped = recipe(
        wrap="chat", system="Be kind", chat_template_sha256=hash_chat_template(TOKENIZER)
    )
    variables = {"what": "a", "whom": "b"}
    expected = "<s><u>Be kind<u>Say a to b:<a>"
    assert render(wrapped, variables, TOKENIZER) == expected
    found = encode_variables(wrapped, variables, TOKENIZER)
    assert found == [BOS, USER, *ids("Be kind"), USER, *ids("Say a to b:"), ASSISTANT]
    messages = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Say a to b:"},
    ]
    assert encode_messages(messages, TOKENIZER) == found


def test_another_chat_template_is_incompatible() -> None:
    wrapped = recipe(wrap="chat", chat_template_sha256="0" * 64)
    with pytest.raises(AdapterIncompatible, match="trained with chat template 000"):
        render(wrapped, {"what": "a", "whom": "b"}, TOKENIZER)


def test_a_base_without_chat_template_refuses_chats() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InvalidRequest) as caught:
        encode_messages([{"role": "user", "content": "hi"}], tokenizer)
    assert caught.value.code == "NO_CHAT_TEMPLATE"


def test_messages_that_the_template_refuses_are_the_callers_fault() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        encode_messages([{"role": "user", "content": "hi"}], tokenizer)
    assert caught.value.code == "INVALID_MESSAGES"


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": []},
        {"segments": [{"text": "a", "var": "b"}]},
        {"segments": [{"include": "/etc/passwd"}]},
        {"segments": [{"var": "a.b"}]},
        {"segments": [{"var": "{{x}}"}]},
        {"wrap": "jinja"},
        {"system": "x"},
        {"wrap": "chat", "add_bos": True},
        {"max_input_tokens": 0},
        {"stop_sequences": [""]},
        {"stop_token_ids": [-1]},
        {"defaults": {"temperature": 0.5}},
        {"defaults": {"temperature": "hot"}},
        {"defaults": {"max_output_tokens": "0"}},
        {"unknown": 1},
    ],
)
def test_recipes_that_are_more_than_segments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        recipe(**changes)
