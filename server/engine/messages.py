"""What crosses the border of the engine: requests in, outputs out. Plain data, no torch, no gRPC.

`Engine.submit(EngineRequest)` hands a request over; the engine answers with one list of
`SequenceOutput` per step, delivered from the engine thread to the `publish` callback. The last
output of a request has `finish_reason` or `error` set; after it the engine holds nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from polygraft.server.engine.constraint import CompiledConstraint


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # end-of-sequence token, a stop token id, or the constraint is complete
    LENGTH = "length"  # max_output_tokens reached
    TIME_LIMIT = "time_limit"  # the request's own time limit; the text is partial
    CANCELLED = "cancelled"  # abort(): client gone, RPC deadline, stop string found upstream


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Applied in the order penalties, `logit_bias`, temperature, `top_k`, `top_p`, `min_p`, draw.
    `temperature` 0 is greedy: the highest logit after penalties and bias, the rest is ignored.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int = 0  # the same seed gives the same tokens in any batch
    min_p: float = 0.0  # least probability, as a part of the most likely token's
    repetition_penalty: float = 1.0  # as in transformers: of tokens in the prompt and the output
    presence_penalty: float = 0.0  # subtracted from the logit of every token in the output
    frequency_penalty: float = 0.0  # the same, once per occurrence in the output
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a sequence ends. A compiled constraint may end it as well.

    Before `min_output_tokens` tokens `stop_token_ids` are impossible.
    """

    max_output_tokens: int
    stop_token_ids: frozenset[int] = frozenset()  # ended by these; includes the base's EOS ids
    time_limit: float | None = None  # seconds from submit; partial text after it
    min_output_tokens: int = 0


PRIORITIES = (-1, 0, 1)  # low, normal, high


@dataclass(frozen=True, slots=True)
class FairShare:
    """Whose account a request is charged to: a namespace, and an adapter name inside it.

    Computing power is divided by the weights of EngineConfig, first among the namespaces that want
    it, then among the adapters of each. `adapter` "" is the base alone.
    """

    namespace: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True, order=True)
class AdapterShare:
    """One adapter version of a request and the weight of its update."""

    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation (or scoring) job.

    `adapters` are versions the caller has *acquired* from `Residency.acquire`, one reference for
    each; the engine releases them when the sequence ends. Sorted by digest, so that the order in
    which they were named changes nothing. Empty: the base alone.
    `score_from`: positions >= score_from of `prompt_token_ids` are scored (log-probability of
    each given everything before it); such a request generates `stopping.max_output_tokens` = 0.
    `wanted_logprobs` names the tokens whose log-probabilities a probe asks for, a tuple for each of
    the last positions of the prompt: they are the `top` of `prompt_logprobs`, for the last position
    of the first output's `logprobs`.
    `top_logprobs` and `prompt_logprobs` ask for log-probabilities of the output and of the prompt
    (all its tokens but the first): None for none, 0 for the token's own, k for the k most likely
    tokens beside it.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    stopping: Stopping
    sampling: Sampling = field(default_factory=Sampling)
    adapters: tuple[AdapterShare, ...] = ()
    num_virtual: int = 0  # virtual tokens of these versions, from their manifests
    num_prefix: int = 0  # of them, those whose keys and values come ready-made (prefix tuning)
    salt: str = ""  # whose prompt it is; prompts of different salts never share cached keys
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    score_from: int | None = None
    wanted_logprobs: tuple[tuple[int, ...], ...] = ()  # not together with the three above
    prefix_cache: bool = True  # may read and write it, where the engine has one
    max_chunk: int | None = None  # prompt tokens in one step; None: as the engine is configured
    constraint: CompiledConstraint | None = None
    speculation: bool | None = None  # None: as the engine is configured
    share: FairShare = field(default_factory=FairShare)
    priority: int = 0  # one of PRIORITIES; higher goes first
    deadline: float | None = None  # monotonic; refused at submit when it cannot be met
    after: str | None = None  # request id of a sibling whose prompt is computed first

    @property
    def digests(self) -> tuple[str, ...]:
        """The adapter versions, without their weights."""
        return tuple(share.digest for share in self.adapters)

    @property
    def is_scoring(self) -> bool:
        """Whether it asks for the likelihood of its prompt only."""
        return self.score_from is not None

    @property
    def first_scored(self) -> int | None:
        """Index of the first prompt token whose log-probability is asked for; None: none is."""
        if self.wanted_logprobs:
            return len(self.prompt_token_ids) + 1 - len(self.wanted_logprobs)
        if self.score_from is None and self.prompt_logprobs is not None:
            return 1
        return self.score_from


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's place in the model's own distribution, before anything of `Sampling`."""

    token_id: int
    logprob: float  # natural logarithm
    rank: int  # 1 for the most likely token; of equal ones the lowest id comes first
    # (token id, logprob) of the most likely, in order, or of those that were wanted
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one step produced for one request.

    Guesses that proved right make several `token_ids`. `logprobs` is parallel to them when asked
    for. `prompt_logprobs` comes at once: on the first output with a token, or for a scoring request
    on the last one, whose `token_ids` is empty.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # a PolygraftError, or an unexpected one (INTERNAL)
    queue_seconds: float = 0.0  # submit to first scheduled step; set on the first output
    num_cached: int = 0  # positions read from the prefix cache; every output says it

    @property
    def is_final(self) -> bool:
        """True on the last output of a request."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Who waits, and what became of those who waited; counts only grow."""

    in_line: Mapping[int, int] = field(default_factory=dict)  # by priority: could be admitted
    displaced: int = 0  # gave their place to one that was served less or is of a higher class
    cold_waits: int = 0  # times that one had to wait for an adapter
    deadlines_refused: int = 0  # at submit: the queue was sure to take longer
    deadlines_passed: int = 0  # while waiting


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """Guessed tokens; counts only grow."""

    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics and health; cheap to take from any thread."""

    waiting: int  # sequences not yet admitted
    loading: int  # of those, waiting for an adapter
    running: int
    total_blocks: int
    free_blocks: int
    preemptions: int
    cached_tokens: int  # positions that the prefix cache made unnecessary
    pool_rows: int  # rank rows of the device pool
    free_pool_rows: int
    step_age: float | None  # seconds that the step in progress has run; None between steps
    alive: bool
    queue: QueueStats = field(default_factory=QueueStats)
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    # On a GPU, how often which way was taken, by what there is a choice of: "steps" (graph, eager),
    # "linear", "attention", "sampling". Counts only grow.
    device: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
