"""Where the border between context and continuation falls when tokens reach across it."""

from __future__ import annotations

import pytest
from server_support.tokenizers import byte_fallback, byte_level
from tiny_models import BOS, byte_tokenizer

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.applied import AppliedAdapters
from polygraft.server.encoding import PromptEncoder
from polygraft.server.requests import Messages, Prompt, ScoreItem, TokenIds, Variables

BASE_ALONE = AppliedAdapters()


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("Hello wor", "ld"),
        ("This is", " a plain sentence"),
        ("This is ", "a"),
        ("a", "b"),
        ("", "a"),
    ],
)
def test_context_and_continuation_are_tokenised_as_one_text(
    make: object, context: str, continuation: str
) -> None:
    tokenizer = make()  # type: ignore[operator]
    asked = ScoreItem(Prompt(context), (continuation,))
    [[item]] = PromptEncoder(tokenizer).encode_items([asked], BASE_ALONE)
    assert list(item.token_ids) == tokenizer.encode(context + continuation)
    assert item.score_from < len(item.token_ids), "the continuation has a token"
    whole = tokenizer.encode(context)
    assert list(item.token_ids[: item.score_from]) == whole[: item.score_from]


def test_after_token_ids_a_continuation_is_tokenised_alone() -> None:
    tokenizer = byte_tokenizer()
    encoder = PromptEncoder(tokenizer)
    asked = ScoreItem(TokenIds((BOS, 5)), ("ab", (7,)))
    [[text, tokens]] = encoder.encode_items([asked], BASE_ALONE)
    assert text.token_ids == (BOS, 5, *tokenizer.encode("ab"))
    assert tokens.token_ids == (BOS, 5, 7)
    assert text.score_from == tokens.score_from == 2


def test_variables_without_a_recipe_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        PromptEncoder(byte_tokenizer()).encode(Variables({"a": "b"}), BASE_ALONE)
    assert caught.value.code == "NO_RECIPE"


def test_messages_without_a_chat_template_are_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InvalidRequest) as caught:
        PromptEncoder(tokenizer).encode(Messages(({"role": "user", "content": "x"},)), BASE_ALONE)
    assert caught.value.code == "NO_CHAT_TEMPLATE"
