"""Checks of how an answer is to be made: sampling, stopping, output, constraint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from polygraft.server.engine.constraint import Constraint, ConstraintKind
from polygraft.server.field_checks import check_count, check_integer, check_number, refuse
from polygraft.server.requests import OutputOptions, SamplingOptions, StoppingOptions

_KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class OptionLimits:
    """Bounds of the options of one request. Sizes in bytes of UTF-8."""

    max_temperature: float = 10.0
    max_repetition_penalty: float = 10.0
    max_penalty: float = 2.0  # presence and frequency, in either direction
    max_logit_bias: float = 100.0  # in either direction
    max_logit_bias_entries: int = 1024
    max_seed: int = (1 << 53) - 1  # survives a JSON number
    max_choices: int = 8
    max_stop_sequences: int = 16
    max_stop_sequence_bytes: int = 256
    max_stop_token_ids: int = 64
    max_top_logprobs: int = 20
    max_schema_bytes: int = 64 * _KIB
    max_regex_bytes: int = 8 * _KIB
    max_grammar_bytes: int = 64 * _KIB
    max_texts: int = 1024  # of a choice constraint
    max_texts_bytes: int = 64 * _KIB


class OptionChecks:
    """Every method raises InvalidRequest, naming the field as the wire contract spells it."""

    def __init__(self, limits: OptionLimits, *, vocab_size: int) -> None:
        self._limits = limits
        self._vocab_size = vocab_size

    def check_token_ids(self, item: str, token_ids: Iterable[int]) -> None:
        """Every id must be in the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                allowed = f"0 to {self._vocab_size - 1}"
                what = "is not in the vocabulary"
                raise refuse(item, token_id, allowed, what, reason="INVALID_TOKEN")

    def check_sampling(self, sampling: SamplingOptions) -> None:
        """Ranges of numbers; NaN, infinities and -0 are refused."""
        limits = self._limits
        check_number("sampling.temperature", sampling.temperature, 0, limits.max_temperature)
        check_number("sampling.top_p", sampling.top_p, 0, 1, above=True)
        check_number("sampling.min_p", sampling.min_p, 0, 1)
        check_number(
            "sampling.repetition_penalty",
            sampling.repetition_penalty,
            0,
            limits.max_repetition_penalty,
            above=True,
        )
        most = limits.max_penalty
        check_number("sampling.presence_penalty", sampling.presence_penalty, -most, most)
        check_number("sampling.frequency_penalty", sampling.frequency_penalty, -most, most)
        check_integer("sampling.top_k", sampling.top_k, 0, reason="INVALID_SAMPLING")
        check_integer("sampling.seed", sampling.seed, 0, limits.max_seed, reason="INVALID_SAMPLING")
        check_integer("sampling.n", sampling.n, 1, limits.max_choices, reason="INVALID_SAMPLING")
        self._check_bias(sampling)

    def check_stopping(self, stopping: StoppingOptions) -> None:
        """Ranges and counts; whether the lengths fit the context is the planner's business."""
        limits = self._limits
        check_integer("stopping.max_output_tokens", stopping.max_output_tokens, 1)
        check_integer("stopping.min_output_tokens", stopping.min_output_tokens, 0)
        stops = stopping.stop_sequences
        check_count("stopping.stop_sequences", len(stops), limits.max_stop_sequences)
        for index, stop in enumerate(stops):
            most = limits.max_stop_sequence_bytes
            item = f"stopping.stop_sequences[{index}]"
            check_count(item, len(stop.encode()), most, least=1, unit="bytes")
        ids = stopping.stop_token_ids
        check_count("stopping.stop_token_ids", len(ids), limits.max_stop_token_ids)
        self.check_token_ids("stopping.stop_token_ids", ids)
        if stopping.time_limit is not None and not stopping.time_limit > 0:
            raise refuse("stopping.time_limit", stopping.time_limit, "> 0 s", "is not positive")

    def check_output(self, output: OutputOptions) -> None:
        """How many alternatives are shown."""
        most = min(self._limits.max_top_logprobs, self._vocab_size)
        check_integer("output.top_logprobs", output.top_logprobs, 0, most)
        check_integer("output.prompt_logprobs", output.prompt_logprobs, 0, most)

    def check_constraint(self, constraint: Constraint | None) -> None:
        """Sizes; what it says is the compiler's business."""
        if constraint is None:
            return
        limits, kind = self._limits, constraint.kind
        item = f"constraint.{kind.value}"
        if kind is ConstraintKind.CHOICE:
            texts = json.loads(constraint.text)
            check_count(item, len(texts), limits.max_texts, least=1)
            size = sum(len(text.encode()) for text in texts)
            check_count(item, size, limits.max_texts_bytes, unit="bytes")
            _check_texts(item, texts)
            return
        most = {
            ConstraintKind.JSON_SCHEMA: limits.max_schema_bytes,
            ConstraintKind.REGEX: limits.max_regex_bytes,
            ConstraintKind.GRAMMAR: limits.max_grammar_bytes,
        }[kind]
        check_count(item, len(constraint.text.encode()), most, least=1, unit="bytes")

    def _check_bias(self, sampling: SamplingOptions) -> None:
        limits, bias = self._limits, sampling.logit_bias
        check_count("sampling.logit_bias", len(bias), limits.max_logit_bias_entries)
        self.check_token_ids("sampling.logit_bias", bias)
        for token_id, value in bias.items():
            item = f"sampling.logit_bias[{token_id}]"
            check_number(item, value, -limits.max_logit_bias, limits.max_logit_bias)


def _check_texts(item: str, texts: list[str]) -> None:
    seen = set()
    for index, text in enumerate(texts):
        if not text or text in seen:
            what = "comes twice" if text else "is empty"
            raise refuse(f"{item}.values[{index}]", text, "different texts, none empty", what)
        seen.add(text)
