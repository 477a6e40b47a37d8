"""From the messages of the wire contract to the plain data of `server.requests`.

What no plain data could hold is refused here: a missing choice, an enum value or a duration that
does not exist.
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from polygraft.adapters.errors import InvalidRequest
from polygraft.protos import generation_pb2 as pb
from polygraft.protos import inputs_pb2, model_pb2, scoring_pb2
from polygraft.server.engine.constraint import Constraint, ConstraintKind
from polygraft.server.field_checks import refuse
from polygraft.server.requests import (
    AdapterSelection,
    Continuation,
    GenerateRequest,
    Input,
    Messages,
    OutputOptions,
    Priority,
    Prompt,
    SamplingOptions,
    ScoreItem,
    ScoreRequest,
    StoppingOptions,
    TokenIds,
    Variables,
    WeightedReference,
)

_PRIORITIES: dict[int, Priority] = {
    inputs_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    inputs_pb2.PRIORITY_LOW: Priority.LOW,
    inputs_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    inputs_pb2.PRIORITY_HIGH: Priority.HIGH,
}
_MAX_DURATION_SECONDS = 315_576_000_000  # google.protobuf.Duration: 10,000 years
_NANOS = 1_000_000_000


def read_generate(message: pb.GenerateRequest) -> GenerateRequest:
    """Raises InvalidRequest."""
    return GenerateRequest(
        input=read_input(message),
        adapters=read_adapters(message),
        sampling=_read_sampling(message.sampling),
        stopping=_read_stopping(message.stopping),
        output=OutputOptions(
            top_logprobs=_optional(message.output, "top_logprobs"),
            prompt_logprobs=_optional(message.output, "prompt_logprobs"),
            echo=message.output.echo,
        ),
        constraint=_read_constraint(message),
        priority=_read_priority(message.priority),
        speculation=_optional(message, "speculation"),
        sticky_key=message.sticky_key,
    )


def read_score(message: scoring_pb2.ScoreRequest) -> ScoreRequest:
    """Raises InvalidRequest, naming the item."""
    return ScoreRequest(
        items=tuple(_read_item(f"items[{i}].", item) for i, item in enumerate(message.items)),
        adapters=read_adapters(message),
        priority=_read_priority(message.priority),
        sticky_key=message.sticky_key,
    )


def read_adapters(
    message: pb.GenerateRequest | scoring_pb2.ScoreRequest | model_pb2.TokenizeRequest,
) -> AdapterSelection:
    """Which adapters apply; an unset weight is 1."""
    shares = (
        WeightedReference(share.adapter, share.weight if share.HasField("weight") else 1.0)
        for share in message.adapters
    )
    return AdapterSelection(message.adapter, tuple(shares))


def read_input(
    message: pb.GenerateRequest | model_pb2.TokenizeRequest | scoring_pb2.ScoreItem,
    place: str = "",
) -> Input:
    """The input of a request; `place` is the path in front of it. Raises InvalidRequest."""
    match message.WhichOneof("input"):
        case "prompt":
            return Prompt(message.prompt)
        case "messages":
            return Messages(
                tuple({"role": m.role, "content": m.content} for m in message.messages.values)
            )
        case "variables":
            return Variables(dict(message.variables.values))
        case "token_ids" if not isinstance(message, model_pb2.TokenizeRequest):
            return TokenIds(tuple(message.token_ids.values))
    raise InvalidRequest(
        "there is no input.",
        reason="MISSING_INPUT",
        item=f"{place}input",
        hint="Set one of prompt, token_ids, messages and variables.",
    )


def _read_sampling(message: pb.Sampling) -> SamplingOptions:
    return SamplingOptions(
        temperature=_optional(message, "temperature"),
        top_p=_optional(message, "top_p"),
        top_k=_optional(message, "top_k"),
        min_p=_optional(message, "min_p"),
        repetition_penalty=_optional(message, "repetition_penalty"),
        presence_penalty=_optional(message, "presence_penalty"),
        frequency_penalty=_optional(message, "frequency_penalty"),
        logit_bias=dict(message.logit_bias),
        seed=_optional(message, "seed"),
        n=_optional(message, "n"),
    )


def _read_stopping(message: pb.Stopping) -> StoppingOptions:
    limit = _optional(message, "time_limit")
    return StoppingOptions(
        max_output_tokens=_optional(message, "max_output_tokens"),
        min_output_tokens=_optional(message, "min_output_tokens"),
        stop_sequences=tuple(message.stop_sequences),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        time_limit=None if limit is None else _seconds("stopping.time_limit", limit),
    )


def _read_constraint(message: pb.GenerateRequest) -> Constraint | None:
    if not message.HasField("constraint"):
        return None
    kind = message.constraint.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest(
            "the constraint is empty.",
            reason="INVALID_CONSTRAINT",
            item="constraint.kind",
            hint="Set one of json_schema, regex, choice and grammar, or leave it out.",
        )
    value = getattr(message.constraint, kind)
    text = json.dumps(list(value.values)) if kind == "choice" else value
    return Constraint(ConstraintKind(kind), text)


def _read_priority(value: int) -> Priority:
    if value not in _PRIORITIES:
        allowed = f"{min(_PRIORITIES)} to {max(_PRIORITIES)}"
        raise refuse("priority", value, allowed, "is no priority")
    return _PRIORITIES[value]


def _read_item(place: str, message: scoring_pb2.ScoreItem) -> ScoreItem:
    continuations = (
        _read_continuation(f"{place}continuations[{index}]", continuation)
        for index, continuation in enumerate(message.continuations)
    )
    return ScoreItem(read_input(message, place), tuple(continuations))


def _read_continuation(place: str, message: scoring_pb2.Continuation) -> Continuation:
    match message.WhichOneof("target"):
        case "text":
            return message.text
        case "token_ids":
            return tuple(message.token_ids.values)
    raise InvalidRequest("there is nothing to score.", reason="MISSING_INPUT", item=place)


def _seconds(item: str, duration: Duration) -> float:
    """Raises InvalidRequest for what google.protobuf.Duration calls invalid."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_DURATION_SECONDS or abs(nanos) >= _NANOS or seconds * nanos < 0:
        raise refuse(
            item,
            f"{seconds} s and {nanos} ns",
            "|nanos| < 10^9, of the sign of seconds, within 10,000 years",
            "is no duration",
        )
    return seconds + nanos / _NANOS


def _optional(message: Message, name: str) -> Any:
    """The value of a field that can tell whether it was set; None if it was not."""
    return getattr(message, name) if message.HasField(name) else None
