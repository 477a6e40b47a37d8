"""Checks of a request's fields, before anything is resolved, tokenised or queued.

Every refusal is an InvalidRequest that names the field as the wire contract spells it, the value
and the limit. Checks that need the prompt's length are in `server.generation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.requests import (
    GenerateRequest,
    Input,
    Messages,
    Prompt,
    SamplingOptions,
    ScoreItem,
    ScoreRequest,
    StoppingOptions,
    TokenIds,
    Variables,
)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request, whatever the model's context length."""

    max_text_bytes: int = 1 << 20  # UTF-8, of a prompt, of all messages, of all variables
    max_messages: int = 256
    max_variables: int = 64
    max_stop_sequences: int = 16
    max_stop_sequence_bytes: int = 256
    max_stop_token_ids: int = 64
    max_temperature: float = 10.0
    max_score_items: int = 256
    max_score_bytes: int = 1 << 20  # UTF-8, of all items together
    max_reference_bytes: int = 256


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
        self._vocab_size = vocab_size

    def check_generate(self, request: GenerateRequest) -> None:
        """Raises InvalidRequest."""
        self.check_reference(request.adapter)
        self.check_input(request.input, base_only=not request.adapter)
        self._check_sampling(request.sampling)
        self._check_stopping(request.stopping)

    def check_score(self, request: ScoreRequest) -> None:
        """Raises InvalidRequest."""
        self.check_reference(request.adapter)
        _check_count("items", len(request.items), self._limits.max_score_items, least=1)
        total = sum(_text_bytes(item) for item in request.items)
        if total > self._limits.max_score_bytes:
            raise _too_large("items", total, self._limits.max_score_bytes, "bytes of text")
        for index, item in enumerate(request.items):
            place = f"items[{index}]."
            self.check_input(item.context, base_only=not request.adapter, place=place)
            if isinstance(item.continuation, str):
                self._check_text(f"{place}continuation", [item.continuation])
            else:
                self.check_token_ids(f"{place}continuation_token_ids", item.continuation)
            if not item.continuation:
                raise _refuse(f"{place}continuation", "", "text or token ids", "is empty")

    def check_reference(self, adapter: str) -> None:
        """Raises InvalidRequest; whether it exists is the registry's business."""
        size = len(adapter.encode())
        if size > self._limits.max_reference_bytes:
            raise _too_large("adapter", size, self._limits.max_reference_bytes, "bytes")

    def check_input(self, value: Input, *, base_only: bool, place: str = "") -> None:
        """Raises InvalidRequest. `place` is the path in front of the field's name."""
        match value:
            case Prompt(text):
                self._check_text(f"{place}prompt", [text])
            case TokenIds(token_ids):
                self.check_token_ids(f"{place}token_ids", token_ids)
            case Messages(messages):
                _check_count(f"{place}messages", len(messages), self._limits.max_messages, least=1)
                self._check_text(f"{place}messages", (t for m in messages for t in m.values()))
            case Variables(variables):
                _check_count(f"{place}variables", len(variables), self._limits.max_variables)
                self._check_text(f"{place}variables", variables.values())
                if base_only:
                    raise InvalidRequest(
                        "variables fill the prompt recipe of an adapter, and none is named.",
                        reason="NO_RECIPE",
                        item=f"{place}variables",
                        hint="Set `adapter`, or send a prompt.",
                    )

    def check_token_ids(self, item: str, token_ids: Iterable[int]) -> None:
        """Raises InvalidRequest for an id outside the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise _refuse(
                    item,
                    token_id,
                    f"0 to {self._vocab_size - 1}",
                    "is not in the vocabulary",
                    reason="INVALID_TOKEN",
                )

    def _check_text(self, item: str, texts: Iterable[str]) -> None:
        size = sum(len(text.encode()) for text in texts)
        if size > self._limits.max_text_bytes:
            raise _too_large(item, size, self._limits.max_text_bytes, "bytes")
        if size > self._context_bytes:
            raise InvalidRequest(
                f"{size} bytes of text cannot fit the context; {self._context_bytes} might.",
                reason="PROMPT_TOO_LONG",
                item=item,
                found=size,
                allowed=self._context_bytes,
                hint="Shorten it.",
            )

    def _check_sampling(self, sampling: SamplingOptions) -> None:
        _check_number("sampling.temperature", sampling.temperature, self._limits.max_temperature)
        _check_number("sampling.top_p", sampling.top_p, 1.0, above_zero=True)
        _check_integer("sampling.top_k", sampling.top_k, least=0)
        _check_integer("sampling.seed", sampling.seed, least=0)

    def _check_stopping(self, stopping: StoppingOptions) -> None:
        limits = self._limits
        _check_integer("stopping.max_output_tokens", stopping.max_output_tokens, least=1)
        stops = stopping.stop_sequences
        _check_count("stopping.stop_sequences", len(stops), limits.max_stop_sequences)
        for index, stop in enumerate(stops):
            _check_count(
                f"stopping.stop_sequences[{index}]",
                len(stop.encode()),
                limits.max_stop_sequence_bytes,
                least=1,
                unit="bytes",
            )
        ids = stopping.stop_token_ids
        _check_count("stopping.stop_token_ids", len(ids), limits.max_stop_token_ids)
        self.check_token_ids("stopping.stop_token_ids", ids)
        if stopping.time_limit is not None and not stopping.time_limit > 0:
            raise _refuse("stopping.time_limit", stopping.time_limit, "> 0 s", "is not positive")


def _check_number(item: str, value: float | None, most: float, *, above_zero: bool = False) -> None:
    if value is None:
        return
    allowed = f"{'above ' if above_zero else ''}0 to {most:g}, finite"
    is_negative_zero = value == 0 and math.copysign(1, value) < 0
    if not 0 <= value <= most or is_negative_zero or (above_zero and value == 0):
        raise _refuse(item, value, allowed, "is out of range", reason="INVALID_SAMPLING")


def _check_integer(item: str, value: int | None, *, least: int) -> None:
    if value is not None and value < least:
        reason = "INVALID_SAMPLING" if item.startswith("sampling.") else None
        raise _refuse(item, value, f">= {least}", "is too small", reason=reason)


def _check_count(item: str, count: int, most: int, *, least: int = 0, unit: str = "items") -> None:
    if count < least:
        raise _refuse(item, count, f"{least} to {most} {unit}", f"has {count} {unit}")
    if count > most:
        raise _too_large(item, count, most, unit)


def _text_bytes(item: ScoreItem) -> int:
    match item.context:
        case Prompt(text):
            texts = [text]
        case Messages(messages):
            texts = [value for message in messages for value in message.values()]
        case Variables(variables):
            texts = list(variables.values())
        case _:
            texts = []
    continuation = item.continuation if isinstance(item.continuation, str) else ""
    return sum(len(text.encode()) for text in [*texts, continuation])


def _too_large(item: str, found: int, most: int, unit: str) -> InvalidRequest:
    return InvalidRequest(
        f"{found} {unit} are more than the {most} that are allowed.",
        reason="LIMIT_EXCEEDED",
        item=item,
        found=found,
        allowed=most,
    )


def _refuse(
    item: str, found: object, allowed: object, what: str, *, reason: str | None = None
) -> InvalidRequest:
    return InvalidRequest(
        f"{found!r} {what}; allowed: {allowed}.",
        reason=reason,
        item=item,
        found=found,
        allowed=allowed,
    )
