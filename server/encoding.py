"""From a request's input to token ids. Runs in a worker thread: a long prompt takes a while.

The prompt recipe and the chat template are applied by `adapters.prompt`, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from polygraft.adapters.prompt import (
    PromptRecipe,
    encode_messages,
    encode_text,
    encode_variables,
)
from polygraft.server.applied import AppliedAdapters
from polygraft.server.requests import (
    Continuation,
    Input,
    Messages,
    Prompt,
    ScoreItem,
    TokenIds,
    Variables,
)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's tokens, and the recipe of the adapter if that made them."""

    token_ids: tuple[int, ...]
    recipe: PromptRecipe | None = None


@dataclass(frozen=True, slots=True)
class EncodedContinuation:
    """A context and one continuation; the tokens from `score_from` on are the continuation's."""

    token_ids: tuple[int, ...]
    score_from: int


class PromptEncoder:
    """Encodes the inputs of requests for the adapters that apply."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, value: Input, adapters: AppliedAdapters) -> EncodedPrompt:
        """Raises InvalidRequest."""
        recipe = adapters.recipe() if isinstance(value, Variables) else None
        return EncodedPrompt(tuple(self._token_ids(value, adapters)), recipe)

    def encode_items(
        self, items: Sequence[ScoreItem], adapters: AppliedAdapters
    ) -> list[list[EncodedContinuation]]:
        """One for each continuation of each item. Raises InvalidRequest."""
        return [self._encode_item(item, adapters) for item in items]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        text = self._tokenizer.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)
        return text

    def _encode_item(self, item: ScoreItem, adapters: AppliedAdapters) -> list[EncodedContinuation]:
        context = self._token_ids(item.context, adapters)
        return [self._follow(item.context, context, text) for text in item.continuations]

    def _follow(
        self, value: Input, context: Sequence[int], continuation: Continuation
    ) -> EncodedContinuation:
        if not isinstance(continuation, str):
            return EncodedContinuation((*context, *continuation), len(context))
        if not isinstance(value, Prompt):
            tail = self._tokenizer.encode(continuation, add_special_tokens=False)
            return EncodedContinuation((*context, *tail), len(context))
        # Why together: most tokenizers join a continuation's first characters to what stands
        # before them, and the model has seen only such texts.
        whole = encode_text(value.text + continuation, self._tokenizer)
        return EncodedContinuation(tuple(whole), _common_length(context, whole))

    def _token_ids(self, value: Input, adapters: AppliedAdapters) -> Sequence[int]:
        match value:
            case Prompt(text):
                return encode_text(text, self._tokenizer)
            case TokenIds(token_ids):
                return token_ids
            case Messages(messages):
                return encode_messages(messages, self._tokenizer)
            case Variables(variables):
                return encode_variables(adapters.recipe(), variables, self._tokenizer)


def _common_length(context: Sequence[int], whole: Sequence[int]) -> int:
    """Length of the common beginning, so that a token across the border is scored."""
    for index, (left, right) in enumerate(zip(context, whole, strict=False)):
        if left != right:
            return index
    return min(len(context), len(whole))
