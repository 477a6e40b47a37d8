"""What can be asked for, and how it goes into the messages of the wire contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from polygraft.adapters.errors import InvalidRequest
from polygraft.protos import generation_pb2 as pb


class TextOptions(TypedDict, total=False):
    """Inputs that are tokenised, beside a text prompt."""

    messages: Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}]
    variables: Mapping[str, str]  # for the adapter's prompt recipe


class GenerateOptions(TextOptions, total=False):
    """Everything `generate` and `stream` take; what is left out is the server's default.

    Exactly one of a text prompt, `messages`, `variables` and `token_ids` must be given.
    """

    token_ids: Sequence[int]
    adapter: str  # "" base, "name", "name@alias", "name@7", "sha256:..."
    temperature: float  # 0 is greedy
    top_p: float
    top_k: int
    seed: int
    max_output_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    time_limit: float  # seconds; then the text made so far
    logprobs: bool
    return_token_ids: bool
    timeout: float  # seconds for the whole call


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A continuation to score after a context: text or messages, or token ids, or variables."""

    continuation: str | Sequence[int]
    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    token_ids: Sequence[int] | None = None
    variables: Mapping[str, str] | None = None


def write_generate(prompt: str | None, options: GenerateOptions) -> pb.GenerateRequest:
    """Raises InvalidRequest unless there is exactly one input and all values fit the wire."""
    try:
        return _write_generate(prompt, options)
    except (TypeError, ValueError, OverflowError) as error:
        raise _unwritable(error) from error


def _write_generate(prompt: str | None, options: GenerateOptions) -> pb.GenerateRequest:
    limit = options.get("time_limit")
    return pb.GenerateRequest(
        adapter=options.get("adapter", ""),
        **write_input(prompt, options),
        sampling=pb.Sampling(
            temperature=options.get("temperature"),
            top_p=options.get("top_p"),
            top_k=options.get("top_k"),
            seed=options.get("seed"),
        ),
        stopping=pb.Stopping(
            max_output_tokens=options.get("max_output_tokens"),
            stop_sequences=_strings(options.get("stop", ())),
            stop_token_ids=options.get("stop_token_ids", ()),
            ignore_eos=options.get("ignore_eos", False),
            time_limit=None if limit is None else _duration(limit),
        ),
        output=pb.OutputOptions(
            logprobs=options.get("logprobs", False),
            token_ids=options.get("return_token_ids", False),
        ),
    )


def write_score(items: Sequence[ScoreItem], adapter: str) -> pb.ScoreRequest:
    """Raises InvalidRequest unless each item has exactly one input and all values fit the wire."""
    try:
        return pb.ScoreRequest(adapter=adapter, items=[_write_item(item) for item in items])
    except (TypeError, ValueError, OverflowError) as error:
        raise _unwritable(error) from error


def write_input(prompt: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The one field of the oneof `input` that is given."""
    given: dict[str, Any] = {}
    if prompt is not None:
        given["prompt"] = prompt
    if (messages := options.get("messages")) is not None:
        given["messages"] = pb.Messages(values=[pb.Message(**message) for message in messages])
    if (token_ids := options.get("token_ids")) is not None:
        given["token_ids"] = pb.TokenIds(values=token_ids)
    if (variables := options.get("variables")) is not None:
        given["variables"] = pb.Variables(values=variables)
    if len(given) != 1:
        raise InvalidRequest(
            f"exactly one input is needed, {len(given)} are given.",
            reason="MISSING_INPUT",
            item="input",
            found=", ".join(given) or None,
            allowed="prompt, messages, token_ids or variables",
        )
    return given


def _write_item(item: ScoreItem) -> pb.ScoreItem:
    others = {
        "messages": item.messages,
        "token_ids": item.token_ids,
        "variables": item.variables,
    }
    message = pb.ScoreItem(**write_input(item.prompt, others))
    if isinstance(item.continuation, str):
        message.continuation = item.continuation
    else:
        message.continuation_token_ids.values.extend(item.continuation)
    return message


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _strings(value: str | Sequence[str]) -> Sequence[str]:
    """A single string is one item, not its characters."""
    return [value] if isinstance(value, str) else value


def _unwritable(error: Exception) -> InvalidRequest:
    """What protobuf says of a value that a message cannot hold (UnicodeError is a ValueError)."""
    return InvalidRequest(f"an option cannot be sent: {error}.", item="options")
