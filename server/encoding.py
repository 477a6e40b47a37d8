"""From a request's input to token ids. Runs in a worker thread: a long prompt takes a while.

The prompt recipe and the chat template are applied by `adapters.prompt`, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.prompt import (
    PromptRecipe,
    encode_messages,
    encode_text,
    encode_variables,
)
from polygraft.adapters.registry import VersionRecord
from polygraft.server.requests import (
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
class EncodedItem:
    """A context and its continuation; the tokens from `score_from` on are the continuation's."""

    token_ids: tuple[int, ...]
    score_from: int


class PromptEncoder:
    """Encodes the inputs of requests for an adapter version, None being the base alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, value: Input, version: VersionRecord | None) -> EncodedPrompt:
        """Raises InvalidRequest."""
        recipe = _recipe_of(version) if isinstance(value, Variables) else None
        return EncodedPrompt(tuple(self._token_ids(value, version)), recipe)

    def encode_items(
        self, items: Sequence[ScoreItem], version: VersionRecord | None
    ) -> list[EncodedItem]:
        """One for each item. Raises InvalidRequest."""
        return [self._encode_item(item, version) for item in items]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        text = self._tokenizer.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)
        return text

    def _encode_item(self, item: ScoreItem, version: VersionRecord | None) -> EncodedItem:
        context = self._token_ids(item.context, version)
        if not isinstance(item.continuation, str):
            return EncodedItem((*context, *item.continuation), len(context))
        if not isinstance(item.context, Prompt):
            tail = self._tokenizer.encode(item.continuation, add_special_tokens=False)
            return EncodedItem((*context, *tail), len(context))
        # Why together: most tokenizers join a continuation's first characters to what stands
        # before them, and the model has seen only such texts.
        whole = encode_text(item.context.text + item.continuation, self._tokenizer)
        return EncodedItem(tuple(whole), _common_length(context, whole))

    def _token_ids(self, value: Input, version: VersionRecord | None) -> Sequence[int]:
        match value:
            case Prompt(text):
                return encode_text(text, self._tokenizer)
            case TokenIds(token_ids):
                return token_ids
            case Messages(messages):
                return encode_messages(messages, self._tokenizer)
            case Variables(variables):
                return encode_variables(_recipe_of(version), variables, self._tokenizer)


def _recipe_of(version: VersionRecord | None) -> PromptRecipe:
    recipe = version.manifest.prompt if version else None
    if recipe is None:
        name = f"version {version.number} of {version.adapter_name!r}" if version else "the base"
        raise InvalidRequest(
            f"{name} carries no prompt recipe for variables to fill.",
            reason="NO_RECIPE",
            item="variables",
            hint="Send a prompt, messages or token ids.",
        )
    return recipe


def _common_length(context: Sequence[int], whole: Sequence[int]) -> int:
    """Length of the common beginning, so that a token across the border is scored."""
    for index, (left, right) in enumerate(zip(context, whole, strict=False)):
        if left != right:
            return index
    return min(len(context), len(whole))
