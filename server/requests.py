"""What the front-end is asked and what it answers, as plain data. Knows no gRPC.

`None` in an option means "not given": the default is then taken from the adapter's recipe or from
this server, in `server.planning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from polygraft.server.engine.constraint import Constraint
from polygraft.server.engine.messages import TokenLogprob


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
class WeightedReference:
    """A reference to an adapter and what its update is multiplied by."""

    reference: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AdapterSelection:
    """Which adapters apply: one by its reference, or several by weight. Neither: the base alone."""

    adapter: str = ""
    composition: tuple[WeightedReference, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the base alone is asked for."""
        return not self.adapter and not self.composition


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen; see `Sampling` in generation.proto."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class StoppingOptions:
    """When an answer ends; `time_limit` in seconds. See `Stopping` in generation.proto."""

    max_output_tokens: int | None = None
    min_output_tokens: int | None = None
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What an answer carries besides text; see `OutputOptions` in generation.proto."""

    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False


class Priority(Enum):
    """How urgent a request is; the values are those of `EngineRequest.priority`."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What `Generate` is asked."""

    input: Input
    adapters: AdapterSelection = field(default_factory=AdapterSelection)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stopping: StoppingOptions = field(default_factory=StoppingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    constraint: Constraint | None = None
    priority: Priority = Priority.NORMAL
    speculation: bool | None = None
    sticky_key: str = ""  # chooses between the versions of an alias; "": by request


Continuation = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A context and the continuations of it to score, each as text or as tokens."""

    context: Input
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Continuations to score, independently of each other."""

    items: tuple[ScoreItem, ...]
    adapters: AdapterSelection = field(default_factory=AdapterSelection)
    priority: Priority = Priority.NORMAL
    sticky_key: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    virtual_tokens: int = 0
    output_tokens: int = 0  # of all choices
    cached_tokens: int = 0  # of the virtual and prompt positions


class Ending(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in one choice of an answer; `ending` is set on its last piece only.

    `prompt_logprobs` come once, on the first piece of choice 0. `output_tokens` is the number of
    the choice's tokens so far.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    ending: Ending | None = None
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """The tokens of one continuation with their log-probabilities."""

    tokens: tuple[TokenLogprob, ...]
    usage: Usage
