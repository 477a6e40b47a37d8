"""What can be asked for, and how it goes into the messages of the wire contract."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypedDict, get_args

from google.protobuf.duration_pb2 import Duration

from polygraft.adapters.errors import InvalidRequest
from polygraft.protos import generation_pb2 as pb
from polygraft.protos import inputs_pb2, scoring_pb2

PriorityName = Literal["low", "normal", "high"]
# What protobuf and the functions below raise for values that no message can hold.
_UNWRITABLE = (TypeError, ValueError, OverflowError, AttributeError)  # UnicodeError is a ValueError


class TextOptions(TypedDict, total=False):
    """Inputs that are tokenised, beside a text prompt."""

    messages: Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}]
    variables: Mapping[str, str]  # for the adapter's prompt recipe


class GenerateOptions(TextOptions, total=False):
    """Everything `generate` and `stream` take; what is left out is the server's default.

    Exactly one of a text prompt, `messages`, `variables` and `token_ids` must be given, and at most
    one of `adapter` and `adapters`, and one of the four constraints.
    """

    token_ids: Sequence[int]
    adapter: str  # "" base, "name", "name@alias", "name@7", "sha256:..."
    adapters: Mapping[str, float]  # a composition: references and their weights
    # sampling
    temperature: float  # 0 is greedy
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    n: int  # choices
    # stopping
    max_output_tokens: int
    min_output_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    time_limit: float  # seconds; then the text made so far
    # output
    top_logprobs: int  # 0: of the token itself only
    prompt_logprobs: int
    echo: bool
    return_token_ids: bool
    # constraint
    json_schema: str | Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str  # Lark's notation
    # the call
    priority: PriorityName
    speculation: bool
    sticky_key: str  # equal keys get the same version of an alias with a canary
    timeout: float  # seconds for the whole call


_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "seed", "n"),
)


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A continuation to score after a context: text or messages, or token ids, or variables."""

    continuation: str | Sequence[int]
    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    token_ids: Sequence[int] | None = None
    variables: Mapping[str, str] | None = None

    @classmethod
    def each(
        cls, continuations: Sequence[str | Sequence[int]], prompt: str | None = None, **context: Any
    ) -> list[ScoreItem]:
        """Several continuations of one context, which is sent and computed once."""
        return [cls(continuation, prompt, **context) for continuation in continuations]

    def _context(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "messages": self.messages,
            "token_ids": self.token_ids,
            "variables": self.variables,
        }


def write_generate(prompt: str | None, options: GenerateOptions) -> pb.GenerateRequest:
    """Raises InvalidRequest unless there is exactly one input and all values fit the wire."""
    _check_names(options)
    try:
        return _write_generate(prompt, options)
    except _UNWRITABLE as error:
        raise _unwritable(*_culprit(prompt, options), error) from error


def _write_generate(prompt: str | None, options: GenerateOptions) -> pb.GenerateRequest:
    limit = options.get("time_limit")
    return pb.GenerateRequest(
        adapter=options.get("adapter", ""),
        adapters=write_adapters(options.get("adapters")),
        **write_input(prompt, options),
        sampling=pb.Sampling(**{name: options.get(name) for name in _SAMPLING}),  # type: ignore[arg-type]
        stopping=pb.Stopping(
            max_output_tokens=options.get("max_output_tokens"),
            min_output_tokens=options.get("min_output_tokens"),
            stop_sequences=_strings(options.get("stop", ())),
            stop_token_ids=options.get("stop_token_ids", ()),
            ignore_eos=options.get("ignore_eos", False),
            time_limit=None if limit is None else _duration(limit),
        ),
        output=pb.OutputOptions(
            top_logprobs=options.get("top_logprobs"),
            prompt_logprobs=options.get("prompt_logprobs"),
            token_ids=options.get("return_token_ids", False),
            echo=options.get("echo", False),
        ),
        constraint=_write_constraint(options),
        priority=_priority(options.get("priority")),
        speculation=options.get("speculation"),
        sticky_key=options.get("sticky_key", ""),
    )


def write_score(
    items: Sequence[ScoreItem],
    adapter: str,
    adapters: Mapping[str, float] | None,
    priority: PriorityName | None,
    sticky_key: str = "",
) -> scoring_pb2.ScoreRequest:
    """Neighbours of the same context become one item of the wire.

    Raises InvalidRequest unless each has exactly one input and all values fit the wire.
    """
    try:
        return scoring_pb2.ScoreRequest(
            adapter=adapter,
            adapters=write_adapters(adapters),
            items=[
                scoring_pb2.ScoreItem(
                    **write_input(None, context),
                    continuations=[_write_continuation(item) for item in group],
                )
                for context, group in groupby(items, ScoreItem._context)
            ],
            priority=_priority(priority),
            sticky_key=sticky_key,
        )
    except _UNWRITABLE as error:
        raise _unwritable("items", items, error) from error


def write_input(prompt: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The one field of the oneof `input` that is given."""
    given: dict[str, Any] = {}
    if (text := options.get("prompt") if prompt is None else prompt) is not None:
        given["prompt"] = text
    if (messages := options.get("messages")) is not None:
        values = [inputs_pb2.Message(**message) for message in messages]
        given["messages"] = inputs_pb2.Messages(values=values)
    if (token_ids := options.get("token_ids")) is not None:
        given["token_ids"] = inputs_pb2.TokenIds(values=token_ids)
    if (variables := options.get("variables")) is not None:
        given["variables"] = inputs_pb2.Variables(values=variables)
    return _only("input", given, "prompt, messages, token_ids or variables", least=1)


def write_adapters(adapters: Mapping[str, float] | None) -> list[inputs_pb2.AdapterShare]:
    """A composition; none is given by None."""
    shares = (adapters or {}).items()
    return [inputs_pb2.AdapterShare(adapter=name, weight=weight) for name, weight in shares]


def _priority(name: PriorityName | None) -> str:
    """The name of the enum's value."""
    if name is None:
        return "PRIORITY_UNSPECIFIED"
    if name not in get_args(PriorityName):
        raise InvalidRequest(
            f"{name!r} is no priority; allowed: low, normal, high.",
            item="priority",
            found=name,
            allowed="low, normal, high",
        )
    return f"PRIORITY_{name.upper()}"


def _write_constraint(options: GenerateOptions) -> pb.Constraint | None:
    given: dict[str, Any] = {}
    if (schema := options.get("json_schema")) is not None:
        given["json_schema"] = schema if isinstance(schema, str) else json.dumps(schema)
    if (regex := options.get("regex")) is not None:
        given["regex"] = regex
    if (choice := options.get("choice")) is not None:
        given["choice"] = pb.TextList(values=_strings(choice))
    if (grammar := options.get("grammar")) is not None:
        given["grammar"] = grammar
    kind = _only("constraint", given, "json_schema, regex, choice or grammar", least=0)
    return pb.Constraint(**kind) if kind else None


def _write_continuation(item: ScoreItem) -> scoring_pb2.Continuation:
    if isinstance(item.continuation, str):
        return scoring_pb2.Continuation(text=item.continuation)
    return scoring_pb2.Continuation(token_ids=inputs_pb2.TokenIds(values=item.continuation))


def _only(item: str, given: dict[str, Any], allowed: str, *, least: int) -> dict[str, Any]:
    if least <= len(given) <= 1:
        return given
    raise InvalidRequest(
        f"{'exactly' if least else 'at most'} one {item} is needed, {len(given)} are given.",
        reason="MISSING_INPUT" if least else "INVALID_CONSTRAINT",
        item=item,
        found=", ".join(given) or None,
        allowed=allowed,
    )


def _check_names(options: Mapping[str, Any]) -> None:
    """Why at run time, too: a misspelled option would be left out without a word."""
    known = {*TextOptions.__annotations__, *GenerateOptions.__annotations__}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"there is no option {name!r}{hint}")


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _strings(value: str | Sequence[str]) -> Sequence[str]:
    """A single string is one item, not its characters."""
    return [value] if isinstance(value, str) else value


def _culprit(prompt: str | None, options: GenerateOptions) -> tuple[str, object]:
    """Name and value of the option that no message can hold: protobuf's errors do not say which."""
    for name, value in options.items():
        text = None if name in ("token_ids", "messages", "variables") else ""
        try:
            _write_generate(text, {name: value})  # type: ignore[misc]
        except _UNWRITABLE:
            return name, value
    return "prompt", prompt


def _unwritable(item: str, value: object, error: Exception) -> InvalidRequest:
    """What protobuf says of a value that a message cannot hold."""
    return InvalidRequest(
        f"a value of type {type(value).__name__} cannot be sent: {error}.", item=item
    )
