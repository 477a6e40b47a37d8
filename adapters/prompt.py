"""The prompt recipe of an adapter: variables -> text -> token ids. One function for both sides.

Trainer and server render and tokenise with this module, so that an adapter sees in service what
it saw in training. Recipes have literal segments and named variables only: no loops, filters or
template language, because templates from adapters are code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polygraft.adapters.errors import AdapterIncompatible, InvalidRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


MAX_VARIABLES = 64  # of one recipe; a request may fill so many
TEMPERATURE = r"^([0-9](\.[0-9]{1,6})?|10(\.0{1,6})?)$"  # 0 to 10, as in a request


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextSegment(_Frozen):
    """Literal text."""

    text: str


class VariableSegment(_Frozen):
    """A place that the request fills."""

    var: VariableName


class RecipeDefaults(_Frozen):
    """Generation settings that the adapter was scored with; decimal strings, never floats."""

    temperature: Annotated[str, Field(pattern=TEMPERATURE)] | None = None
    max_output_tokens: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}$")] | None = None


class PromptRecipe(_Frozen):
    """How a request's variables become the prompt.

    `wrap` "chat" puts the text as the user's message into the chat template of the base, whose
    sha256 is recorded and compared; BOS is then the template's business. `max_input_tokens`
    counts the tokens of the prompt without the soft prompt.
    """

    segments: tuple[TextSegment | VariableSegment, ...] = Field(
        min_length=1, max_length=256, strict=False
    )
    wrap: Literal["none", "chat"] = "none"
    system: str | None = None
    chat_template_sha256: str | None = None
    add_bos: bool = False
    soft_prompt: Literal["front"] = "front"
    allow_special_tokens: bool = False
    max_input_tokens: Annotated[int, Field(gt=0)] | None = None
    on_overflow: Literal["error"] = "error"
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), max_length=64, strict=False
    )
    stop_sequences: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        default=(), max_length=16, strict=False
    )
    defaults: RecipeDefaults = RecipeDefaults()

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> PromptRecipe:
        if len(self.variables) > MAX_VARIABLES:
            raise ValueError(f"{len(self.variables)} variables are more than {MAX_VARIABLES}")
        if not self.variables and not any(getattr(s, "text", "") for s in self.segments):
            raise ValueError("the prompt is always empty")
        return self

    @model_validator(mode="after")
    def _chat_fields_need_chat(self) -> PromptRecipe:
        if self.wrap == "none" and (self.system is not None or self.chat_template_sha256):
            raise ValueError('system and chat_template_sha256 need wrap = "chat"')
        if self.wrap == "chat" and self.add_bos:
            raise ValueError('add_bos must be false with wrap = "chat": the template adds it')
        return self

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables in the order of their first use."""
        names = (s.var for s in self.segments if isinstance(s, VariableSegment))
        return tuple(dict.fromkeys(names))


def render(
    recipe: PromptRecipe, variables: Mapping[str, str], tokenizer: PreTrainedTokenizerBase
) -> str:
    """The prompt text, chat template included. BOS of `add_bos` is added as an id later.

    Raises InvalidRequest (MISSING_VARIABLE, UNKNOWN_VARIABLE, SPECIAL_TOKEN, NO_CHAT_TEMPLATE)
    or AdapterIncompatible when the base's chat template is not the recorded one.
    """
    _check_variables(recipe, variables, tokenizer)
    text = "".join(
        segment.text if isinstance(segment, TextSegment) else variables[segment.var]
        for segment in recipe.segments
    )
    if recipe.wrap == "none":
        return text
    _check_template(recipe, tokenizer)
    messages = [{"role": "user", "content": text}]
    if recipe.system is not None:
        messages.insert(0, {"role": "system", "content": recipe.system})
    return _apply_chat_template(messages, tokenizer)


def encode_variables(
    recipe: PromptRecipe, variables: Mapping[str, str], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of the rendered prompt; raises as `render`, and PROMPT_TOO_LONG."""
    token_ids = _encode(render(recipe, variables, tokenizer), tokenizer)
    if recipe.add_bos:
        if tokenizer.bos_token_id is None:
            raise InvalidRequest(
                "the adapter's recipe starts with BOS, but the tokenizer has none.",
                reason="NO_BOS_TOKEN",
                item="adapter",
            )
        token_ids.insert(0, int(tokenizer.bos_token_id))
    if recipe.max_input_tokens is not None and len(token_ids) > recipe.max_input_tokens:
        raise InvalidRequest(
            f"the prompt has {len(token_ids)} tokens, the adapter was trained for at most "
            f"{recipe.max_input_tokens}.",
            reason="PROMPT_TOO_LONG",
            item="variables",
            found=len(token_ids),
            allowed=recipe.max_input_tokens,
            hint="Shorten the input.",
        )
    return token_ids


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a raw prompt, with what the tokenizer itself adds (usually BOS or nothing)."""
    return [int(token) for token in tokenizer.encode(text)]


def encode_messages(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of a chat in the base's own template, up to where the answer begins."""
    return _encode(_apply_chat_template(messages, tokenizer), tokenizer)


def hash_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """sha256 of the base's chat template, as recorded in recipes; None without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [int(t) for t in tokenizer.encode(text, add_special_tokens=False)]


def _apply_chat_template(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> str:
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "the base has no chat template.",
            reason="NO_CHAT_TEMPLATE",
            item="messages",
            hint="Send a plain prompt instead.",
        )
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InvalidRequest(
            f"the base's chat template refuses these messages ({error}).",
            reason="INVALID_MESSAGES",
            item="messages",
        ) from error
    return str(text)


def _check_template(recipe: PromptRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
    expected, found = recipe.chat_template_sha256, hash_chat_template(tokenizer)
    if expected is not None and expected != found:
        raise AdapterIncompatible(
            f"the adapter was trained with chat template {expected}, the base has {found}.",
            file="manifest.json",
            item="prompt.chat_template_sha256",
            found=expected,
            allowed=found,
            hint="Retrain it on this base's template.",
        )


def _check_variables(
    recipe: PromptRecipe, variables: Mapping[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    names = recipe.variables
    listing = ", ".join(names) or "none"
    for name in variables:
        if name not in names:
            raise InvalidRequest(
                f"the adapter has no variable {name[:64]!r} (it has: {listing}).",
                reason="UNKNOWN_VARIABLE",
                item=f"variables[{name[:64]}]",
                found=name,
                allowed=listing,
            )
    for name in names:
        if name not in variables:
            raise InvalidRequest(
                f"the variable {name!r} is missing (the adapter needs: {listing}).",
                reason="MISSING_VARIABLE",
                item=f"variables[{name}]",
                allowed=listing,
            )
    if recipe.allow_special_tokens:
        return
    for name, value in variables.items():
        special = next((s for s in _special_tokens(tokenizer) if s in value), None)
        if special is not None:
            raise InvalidRequest(
                f"the value contains {special!r}, the text of a special token.",
                reason="SPECIAL_TOKEN",
                item=f"variables[{name}]",
                found=special,
                hint="Remove it, or train the adapter with allow_special_tokens.",
            )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that the tokenizer would turn into control ids, not blank ones."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [text for text in {*added, *tokenizer.all_special_tokens} if text.strip()]
