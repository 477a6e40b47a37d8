"""Checks of a request's fields, before anything is resolved, tokenised or queued.

Every refusal is an InvalidRequest that names the field as the wire contract spells it, the value
and the limit. Checks that need the prompt's length are in `server.planning`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.field_checks import check_count, check_number, refuse, too_large
from polygraft.server.option_checks import OptionChecks, OptionLimits
from polygraft.server.requests import (
    AdapterSelection,
    GenerateRequest,
    Input,
    Messages,
    Prompt,
    ScoreItem,
    ScoreRequest,
    TokenIds,
    Variables,
)
from polygraft.server.sizes import item_sizes


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request, whatever the model's context length."""

    max_text_bytes: int = 1 << 20  # UTF-8, of a prompt, of all messages, of all variables
    max_messages: int = 256
    max_variables: int = 64
    max_continuations: int = 256  # of all score items together
    max_score_size: int = 4 << 20  # bytes or tokens; contexts count with each continuation
    max_detokenized: int = 1 << 16  # tokens
    max_reference_bytes: int = 256
    max_sticky_key_bytes: int = 256
    max_adapters: int = 4
    max_weight: float = 4.0  # of an adapter, in either direction


class RequestValidator:
    """Refuses requests that can never be served. `vocab_size` bounds token ids.

    `context_bytes` is the longest text that could ever fit the context, should all its tokens be
    the longest of the vocabulary: what is longer is refused without tokenising it.
    """

    def __init__(
        self, limits: RequestLimits, *, vocab_size: int, context_bytes: int | None = None
    ) -> None:
        self._context_bytes = limits.max_text_bytes if context_bytes is None else context_bytes
        self._limits = limits
        self._options = OptionChecks(OptionLimits(), vocab_size=vocab_size)

    def check_generate(self, request: GenerateRequest) -> None:
        """Raises InvalidRequest."""
        self._check_adapters(request.adapters)
        self._check_sticky_key(request.sticky_key)
        self._check_input(request.input, base_only=request.adapters.is_empty)
        self._options.check_sampling(request.sampling)
        self._options.check_stopping(request.stopping)
        self._options.check_output(request.output)
        self._options.check_constraint(request.constraint)

    def check_score(self, request: ScoreRequest) -> None:
        """Raises InvalidRequest."""
        self._check_adapters(request.adapters)
        self._check_sticky_key(request.sticky_key)
        check_count("items", len(request.items), self._limits.max_continuations, least=1)
        total = sum(len(item.continuations) for item in request.items)
        if total > self._limits.max_continuations:
            raise too_large("items", total, self._limits.max_continuations, "continuations")
        size = sum(sum(item_sizes(item)) for item in request.items)
        if size > self._limits.max_score_size:
            raise too_large("items", size, self._limits.max_score_size, "bytes or tokens")
        for index, item in enumerate(request.items):
            self._check_item(f"items[{index}].", item, base_only=request.adapters.is_empty)

    def check_tokenize(self, value: Input, adapters: AdapterSelection) -> None:
        """Raises InvalidRequest."""
        self._check_adapters(adapters)
        self._check_input(value, base_only=adapters.is_empty)

    def check_detokenize(self, token_ids: Sequence[int]) -> None:
        """Raises InvalidRequest."""
        check_count("token_ids", len(token_ids), self._limits.max_detokenized, unit="tokens")
        self._options.check_token_ids("token_ids", token_ids)

    def _check_adapters(self, adapters: AdapterSelection) -> None:
        """What can be told without the registry."""
        if adapters.adapter and adapters.composition:
            raise InvalidRequest(
                "adapter and adapters are both set; one of them says which adapters apply.",
                item="adapters",
                hint="Put the one adapter into adapters as well.",
            )
        self._check_reference("adapter", adapters.adapter)
        check_count("adapters", len(adapters.composition), self._limits.max_adapters)
        for index, share in enumerate(adapters.composition):
            place = f"adapters[{index}]"
            if not share.reference:
                raise refuse(f"{place}.adapter", "", "a reference", "names no adapter")
            self._check_reference(f"{place}.adapter", share.reference)
            most = self._limits.max_weight
            item = f"{place}.weight"
            check_number(item, share.weight, -most, most, reason="INVALID_COMPOSITION")

    def _check_reference(self, item: str, reference: str) -> None:
        check_count(item, len(reference.encode()), self._limits.max_reference_bytes, unit="bytes")

    def _check_sticky_key(self, key: str) -> None:
        most = self._limits.max_sticky_key_bytes
        check_count("sticky_key", len(key.encode()), most, unit="bytes")

    def _check_input(self, value: Input, *, base_only: bool, place: str = "") -> None:
        match value:
            case Prompt(text):
                self._check_text(f"{place}prompt", [text])
            case TokenIds(token_ids):
                self._options.check_token_ids(f"{place}token_ids", token_ids)
            case Messages(messages):
                check_count(f"{place}messages", len(messages), self._limits.max_messages, least=1)
                self._check_text(f"{place}messages", (t for m in messages for t in m.values()))
            case Variables(variables):
                check_count(f"{place}variables", len(variables), self._limits.max_variables)
                self._check_text(f"{place}variables", variables.values())
                if base_only:
                    raise InvalidRequest(
                        "variables fill the prompt recipe of an adapter, and none is named.",
                        reason="NO_RECIPE",
                        item=f"{place}variables",
                        hint="Set `adapter`, or send a prompt.",
                    )

    def _check_item(self, place: str, item: ScoreItem, *, base_only: bool) -> None:
        self._check_input(item.context, base_only=base_only, place=place)
        if not item.continuations:
            raise refuse(f"{place}continuations", 0, "at least 1", "continuations are given")
        for index, continuation in enumerate(item.continuations):
            target = f"{place}continuations[{index}]"
            if not continuation:
                raise refuse(target, "", "text or token ids", "is empty")
            if isinstance(continuation, str):
                self._check_text(f"{target}.text", [continuation])
            else:
                self._options.check_token_ids(f"{target}.token_ids", continuation)

    def _check_text(self, item: str, texts: Iterable[str]) -> None:
        size = sum(len(text.encode()) for text in texts)
        if size > self._limits.max_text_bytes:
            raise too_large(item, size, self._limits.max_text_bytes, "bytes")
        if size > self._context_bytes:
            raise InvalidRequest(
                f"{size} bytes of text cannot fit the context; {self._context_bytes} might.",
                reason="PROMPT_TOO_LONG",
                item=item,
                found=size,
                allowed=self._context_bytes,
                hint="Shorten it.",
            )
