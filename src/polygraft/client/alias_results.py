"""What a client is told of aliases, scores and events: plain, frozen data. Reads the wire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from polygraft.protos import aliases_pb2, events_pb2, gate_pb2

WHOLE = 10_000  # weights on the wire are in 1/10000


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One demand of a gate, what was found, and whether it is met."""

    name: str
    found: str
    needed: str
    passed: bool


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The numbers on which a gate decided; scores are means in percent."""

    passed: bool
    metric: str
    data_name: str
    data_sha256: str
    rows: int
    against: str  # "current", or "base" where nothing was served
    candidate: float
    current: float | None
    base: float | None
    delta: float
    interval: tuple[float, float]  # of the difference, with 95 % confidence
    checks: tuple[GateCheck, ...]

    @classmethod
    def read(cls, message: gate_pb2.GateVerdict) -> GateVerdict:
        """From the wire."""
        return cls(
            passed=message.passed,
            metric=message.metric,
            data_name=message.data_name,
            data_sha256=message.data_sha256,
            rows=message.row_count,
            against=message.against,
            candidate=message.candidate_mean,
            current=message.current_mean if message.HasField("current_mean") else None,
            base=message.base_mean if message.HasField("base_mean") else None,
            delta=message.delta,
            interval=(message.delta_lower, message.delta_upper),
            checks=tuple(GateCheck(c.name, c.found, c.needed, c.passed) for c in message.checks),
        )


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What a version must show before an alias lets it in; None is the server's default.

    `required`: nothing comes in without a passed gate, unless forced. The other fields are those
    of GatePolicy in gate.proto.
    """

    required: bool = False
    data_sha256: str = ""
    metric: str = ""
    min_rows: int | None = None
    min_delta: float | None = None
    tolerance: float | None = None
    max_stop_rate_drop: float | None = None
    max_length_ratio: float | None = None
    max_latency_ratio: float | None = None
    beats_base: bool | None = None

    def write(self) -> gate_pb2.GatePolicy:
        """For the wire."""
        return gate_pb2.GatePolicy(
            is_required=self.required,
            data_sha256=self.data_sha256,
            metric=self.metric,
            min_row_count=self.min_rows,
            min_delta=self.min_delta,
            tolerance=self.tolerance,
            max_stop_rate_drop=self.max_stop_rate_drop,
            max_length_ratio=self.max_length_ratio,
            max_latency_ratio=self.max_latency_ratio,
            beats_base=self.beats_base,
        )

    @classmethod
    def read(cls, message: gate_pb2.GatePolicy) -> GatePolicy:
        """From the wire, where nothing is unset."""
        return cls(
            required=message.is_required,
            data_sha256=message.data_sha256,
            metric=message.metric,
            min_rows=message.min_row_count,
            min_delta=message.min_delta,
            tolerance=message.tolerance,
            max_stop_rate_drop=message.max_stop_rate_drop,
            max_length_ratio=message.max_length_ratio,
            max_latency_ratio=message.max_latency_ratio,
            beats_base=message.beats_base,
        )


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """A version of an alias and its share of the requests, 0 to 1."""

    number: int
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class Alias:
    """Where an alias points, and how it came there; `generation` counts its moves.

    `number` and `digest` are of the version in charge; 0 and "" in the history where the alias was
    taken away. `restored` is the generation that a rollback brought back, else 0.
    """

    adapter_name: str
    alias: str
    number: int
    digest: str
    generation: int
    moved_at: datetime
    reason: str
    moved_by: str
    targets: tuple[AliasTarget, ...]
    restored: int
    forced: bool
    policy: GatePolicy | None
    verdict: GateVerdict | None

    @property
    def canary(self) -> AliasTarget | None:
        """The second target; None where all requests go to one version."""
        return self.targets[1] if len(self.targets) > 1 else None

    @classmethod
    def read(cls, message: aliases_pb2.Alias) -> Alias:
        """From the wire."""
        return cls(
            adapter_name=message.adapter_name,
            alias=message.alias,
            number=message.version_number,
            digest=message.digest,
            generation=message.generation,
            moved_at=_time(message.update_time),
            reason=message.reason,
            moved_by=message.moved_by,
            targets=tuple(
                AliasTarget(t.version_number, t.digest, t.weight / WHOLE) for t in message.targets
            ),
            restored=message.restored_generation,
            forced=message.is_forced,
            policy=GatePolicy.read(message.policy) if message.HasField("policy") else None,
            verdict=GateVerdict.read(message.verdict) if message.HasField("verdict") else None,
        )


@dataclass(frozen=True, slots=True)
class RecordedScore:
    """A score that the server keeps; `score_id` names it for a gate."""

    score_id: str
    digest: str  # "" for the base alone
    metric: str
    mean: float
    rows: int

    @classmethod
    def read(cls, message: gate_pb2.Score) -> RecordedScore:
        """From the wire."""
        return cls(
            score_id=message.score_id,
            digest=message.digest,
            metric=message.metric,
            mean=message.mean,
            rows=message.row_count,
        )


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One thing that happened. `cursor` is the place behind it, to go on watching from.

    `kind`: "watching" or "missed" first, then "published", "version_deleted", "alias_moved",
    "alias_removed", "canary_withdrawn", "quarantined", "loaded", "evicted".
    """

    kind: str
    cursor: str
    at: datetime
    adapter_name: str
    number: int
    digest: str
    alias: Alias | None
    tier: str
    detail: str

    @classmethod
    def read(cls, message: events_pb2.AdapterEvent) -> AdapterEvent:
        """From the wire."""
        kind = events_pb2.AdapterEventKind.Name(message.kind)
        return cls(
            kind=kind.removeprefix("ADAPTER_EVENT_KIND_").lower(),
            cursor=message.cursor,
            at=_time(message.event_time),
            adapter_name=message.adapter_name,
            number=message.version_number,
            digest=message.digest,
            alias=Alias.read(message.alias) if message.HasField("alias") else None,
            tier=message.tier,
            detail=message.detail,
        )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
