"""What the front-end is asked and what it answers, as plain data. Knows no gRPC and no engine.

`None` in an option means "not given": the default is then taken from the adapter's recipe or from
this server, in `server.generation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text, tokenised as the base's tokenizer does by default."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokens, fed to the model as they are."""

    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation, oldest first: mappings with `role` and `content`."""

    values: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class Variables:
    """Values for the adapter's prompt recipe."""

    values: Mapping[str, str]


Input = Prompt | TokenIds | Messages | Variables


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen; see `Sampling` in generation.proto."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class StoppingOptions:
    """When an answer ends; `time_limit` in seconds. See `Stopping` in generation.proto."""

    max_output_tokens: int | None = None
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer. `adapter` is a reference, "" the base alone."""

    input: Input
    adapter: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stopping: StoppingOptions = field(default_factory=StoppingOptions)
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A context and the continuation to score, as text or as tokens."""

    context: Input
    continuation: str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Continuations to score, independently of each other."""

    items: tuple[ScoreItem, ...]
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    virtual_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of the virtual and prompt positions


class Ending(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in an answer; `ending` and `usage` are set on the last piece only."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    ending: Ending | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a continuation."""

    token_id: int
    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """The tokens of one continuation with their log-probabilities."""

    tokens: tuple[ScoredToken, ...]
    usage: Usage
