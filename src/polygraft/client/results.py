"""What a client is told of models and adapters: plain, frozen data. Reads the wire contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from polygraft.client.alias_results import Alias
from polygraft.protos import adapters_pb2, model_pb2


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
    bos_token_id: int | None = None  # None: the tokenizer has none, or the server is older

    @classmethod
    def read(cls, message: model_pb2.Model) -> Model:
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
            bos_token_id=message.bos_token_id if message.HasField("bos_token_id") else None,
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
    proven: bool  # the server computed what its probes say, before it was published

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
            proven=message.is_proven,
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


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """How far an upload has come. `state` is "receiving", "validating", "published", "rejected" or
    "expired"; `persisted` are the bytes that the server has of each file."""

    upload_id: str
    adapter_name: str
    state: str
    persisted: Mapping[str, int]
    version: AdapterVersion | None
    rejection_reason: str

    @classmethod
    def read(cls, message: adapters_pb2.Upload) -> UploadStatus:
        """From the wire."""
        return cls(
            upload_id=message.upload_id,
            adapter_name=message.adapter_name,
            state=adapters_pb2.UploadState.Name(message.state)
            .removeprefix("UPLOAD_STATE_")
            .lower(),
            persisted={file.name: file.persisted_size_bytes for file in message.files},
            version=AdapterVersion.read(message.version) if message.HasField("version") else None,
            rejection_reason=message.rejection_reason,
        )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
