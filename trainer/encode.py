"""Examples to token ids and labels. The prompt is encoded by the function that the server uses.

Prompt and completion are encoded apart and concatenated, so no token crosses their border and the
prompt ids of training are those of serving. Labels go by position, never by pad id: with
pad = EOS the end token would otherwise carry no loss and the model would never stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polygraft.trainer.data import Example
from polygraft.trainer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polygraft.adapters.prompt import PromptRecipe

IGNORED = -100
"""Label of positions without loss, as torch's cross entropy ignores them."""


@dataclass(frozen=True)
class Encoded:
    """One example as ids. `completion` ends with the end-of-sequence token."""

    example: Example
    prompt: list[int]
    completion: list[int]

    @property
    def input_ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def labels(self) -> list[int]:
        """One per input id: the prompt carries no loss, the completion and its end do."""
        return [IGNORED] * len(self.prompt) + self.completion

    @property
    def supervised(self) -> int:
        """Tokens that are predicted: with nothing in front, the first one is not."""
        return len(self.completion) if self.prompt else len(self.completion) - 1


def encode_examples(
    examples: Sequence[Example],
    recipe: PromptRecipe,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Encoded]:
    """Encode every example. Raises DataError for a special token in its text."""
    return [_encode(example, recipe, tokenizer) for example in examples]


def encode_prompt(
    example: Example, recipe: PromptRecipe, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """What the model is asked, as ids: as the server encodes variables, or messages.

    Raises InvalidRequest.
    """
    from polygraft.adapters.prompt import encode_messages, encode_variables

    if example.messages:
        return encode_messages(example.messages, tokenizer)
    return encode_variables(recipe, example.variables, tokenizer)


def _encode(example: Example, recipe: PromptRecipe, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    from polygraft.adapters.errors import InvalidRequest

    try:
        prompt = encode_prompt(example, recipe, tokenizer)
    except InvalidRequest as error:
        raise DataError(str(error), file=example.source) from None
    completion = tokenizer.encode(example.completion, add_special_tokens=False)
    special = sorted(set(completion) & set(tokenizer.all_special_ids))
    if special:
        names = ", ".join(tokenizer.convert_ids_to_tokens(special))
        raise DataError(
            f"the text of the special token {names} stands in the completion.",
            file=example.source,
            item="completion",
            hint="Remove it; the end token is appended by the trainer.",
        )
    return Encoded(example, prompt, [*completion, int(tokenizer.eos_token_id)])
