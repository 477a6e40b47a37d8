"""What a client gets: plain, frozen data. Reads the messages of the wire contract."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from polygraft.protos import adapters_pb2, generation_pb2


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    virtual_tokens: int
    output_tokens: int
    cached_tokens: int  # of the virtual and prompt positions

    @classmethod
    def read(cls, message: generation_pb2.Usage) -> Usage:
        """From the wire."""
        return cls(
            message.prompt_token_count,
            message.virtual_token_count,
            message.output_token_count,
            message.cached_token_count,
        )


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The adapter version that answered; `digest` is its immutable identity."""

    adapter_name: str
    number: int
    digest: str

    @classmethod
    def read(cls, message: generation_pb2.ServedVersion) -> ServedVersion:
        """From the wire."""
        return cls(message.adapter_name, message.version_number, message.digest)


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer. `finish_reason` is "stop", "length" or "time_limit".

    `version` is None when the base alone answered. `token_ids` and `logprobs` are filled if asked
    for.
    """

    text: str
    finish_reason: str
    usage: Usage
    version: ServedVersion | None
    seed: int
    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    @classmethod
    def read(cls, message: generation_pb2.GenerateResponse) -> Generation:
        """From the wire."""
        return cls(
            text=message.text,
            finish_reason=_finish_reason(message.finish_reason),
            usage=Usage.read(message.usage),
            version=_served(message),
            seed=message.seed,
            request_id=message.request_id,
            token_ids=tuple(message.token_ids),
            logprobs=tuple(message.logprobs),
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer, with its tokens if asked for."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class GenerationBuilder:
    """Joins the messages of a stream into the whole answer."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self.generation: Generation | None = None  # set by the last message

    @property
    def has_begun(self) -> bool:
        """Whether a message has come."""
        return bool(self._pieces)

    def add(self, message: generation_pb2.StreamGenerateResponse) -> Piece:
        """The new piece."""
        piece = Piece(message.text, tuple(message.token_ids), tuple(message.logprobs))
        self._pieces.append(piece)
        if message.finish_reason:
            self.generation = Generation(
                text="".join(piece.text for piece in self._pieces),
                finish_reason=_finish_reason(message.finish_reason),
                usage=Usage.read(message.usage),
                version=_served(message),
                seed=message.seed,
                request_id=message.request_id,
                token_ids=tuple(token for piece in self._pieces for token in piece.token_ids),
                logprobs=tuple(value for piece in self._pieces for value in piece.logprobs),
            )
        return piece


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a continuation."""

    token_id: int
    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Score:
    """The likelihood of one continuation; `logprob` is the sum over its tokens."""

    logprob: float
    is_greedy: bool
    tokens: tuple[ScoredToken, ...]
    usage: Usage
    version: ServedVersion | None

    @classmethod
    def read_all(cls, message: generation_pb2.ScoreResponse) -> list[Score]:
        """From the wire, in the order of the items."""
        version = _served(message)
        return [
            cls(
                logprob=score.logprob,
                is_greedy=score.is_greedy,
                tokens=tuple(
                    ScoredToken(token.token_id, token.logprob, token.is_greedy)
                    for token in score.tokens
                ),
                usage=Usage.read(score.usage),
                version=version,
            )
            for score in message.scores
        ]


@dataclass(frozen=True, slots=True)
class Model:
    """The base model of a server, and the server's limits."""

    name: str
    architecture: str
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    context_length: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    dtype: str
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    max_message_bytes: int
    max_adapter_bytes: int
    max_rank: int
    max_virtual_tokens: int
    server_version: str

    @classmethod
    def read(cls, message: generation_pb2.Model) -> Model:
        """From the wire."""
        return cls(
            name=message.name,
            architecture=message.architecture,
            weights_sha256=message.fingerprint.weights_sha256,
            config_sha256=message.fingerprint.config_sha256,
            tokenizer_sha256=message.fingerprint.tokenizer_sha256,
            context_length=message.context_length,
            vocab_size=message.vocab_size,
            hidden_size=message.hidden_size,
            num_layers=message.layer_count,
            dtype=message.dtype,
            eos_token_ids=tuple(message.eos_token_ids),
            has_chat_template=message.has_chat_template,
            max_message_bytes=message.limits.max_message_size_bytes,
            max_adapter_bytes=message.limits.max_adapter_size_bytes,
            max_rank=message.limits.max_rank,
            max_virtual_tokens=message.limits.max_virtual_token_count,
            server_version=message.server_version,
        )


@dataclass(frozen=True, slots=True)
class Alias:
    """Where an alias points; `generation` counts its moves."""

    adapter_name: str
    alias: str
    number: int
    digest: str
    generation: int
    moved_at: datetime
    reason: str

    @classmethod
    def read(cls, message: adapters_pb2.Alias) -> Alias:
        """From the wire."""
        return cls(
            adapter_name=message.adapter_name,
            alias=message.alias,
            number=message.version_number,
            digest=message.digest,
            generation=message.generation,
            moved_at=_time(message.update_time),
            reason=message.reason,
        )


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable version. `kind` is "lora", "soft_prompt" or "prefix", `tier` where it is."""

    adapter_name: str
    number: int
    digest: str
    kind: str
    verified: bool  # made for this very base, by fingerprint; else only shapes were checked
    created_at: datetime
    size_bytes: int
    max_rank: int
    virtual_tokens: int
    variables: tuple[str, ...]  # of its prompt recipe; empty without one
    tier: str
    references: int
    manifest_json: str  # only from `get_adapter`

    @classmethod
    def read(cls, message: adapters_pb2.AdapterVersion) -> AdapterVersion:
        """From the wire."""
        kind = adapters_pb2.AdapterKind.Name(message.kind)
        return cls(
            adapter_name=message.adapter_name,
            number=message.number,
            digest=message.digest,
            kind=kind.removeprefix("ADAPTER_KIND_").lower(),
            verified=message.is_verified,
            created_at=_time(message.create_time),
            size_bytes=message.size_bytes,
            max_rank=message.max_rank,
            virtual_tokens=message.virtual_token_count,
            variables=tuple(message.variable_names),
            tier=adapters_pb2.Tier.Name(message.tier).removeprefix("TIER_").lower(),
            references=message.reference_count,
            manifest_json=message.manifest_json,
        )


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name with its aliases; `version` is the one asked for, in a list the live one."""

    name: str
    num_versions: int
    aliases: tuple[Alias, ...]
    version: AdapterVersion | None

    @classmethod
    def read(cls, message: adapters_pb2.Adapter) -> Adapter:
        """From the wire."""
        has_version = message.HasField("version")
        return cls(
            name=message.name,
            num_versions=message.version_count,
            aliases=tuple(Alias.read(alias) for alias in message.aliases),
            version=AdapterVersion.read(message.version) if has_version else None,
        )


@dataclass(frozen=True, slots=True)
class Upload:
    """What an upload published, which alias was moved to it, and what is worth knowing."""

    version: AdapterVersion
    alias: Alias | None
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, message: adapters_pb2.UploadAdapterResponse) -> Upload:
        """From the wire."""
        return cls(
            version=AdapterVersion.read(message.version),
            alias=Alias.read(message.alias) if message.HasField("alias") else None,
            warnings=tuple(message.warnings),
        )


def _served(
    message: generation_pb2.GenerateResponse
    | generation_pb2.StreamGenerateResponse
    | generation_pb2.ScoreResponse,
) -> ServedVersion | None:
    if not message.HasField("adapter_version"):
        return None
    return ServedVersion.read(message.adapter_version)


def _finish_reason(value: generation_pb2.FinishReason) -> str:
    return generation_pb2.FinishReason.Name(value).removeprefix("FINISH_REASON_").lower()


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
