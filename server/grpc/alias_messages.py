"""Between the messages of aliases.proto, gate.proto, events.proto and `polygraft.adapters`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from polygraft.adapters.alias_records import WHOLE, AliasRecord
from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.events import AdapterEvent
from polygraft.adapters.gate_policy import GatePolicy
from polygraft.adapters.gate_verdict import GateVerdict
from polygraft.adapters.promotion import Evidence
from polygraft.adapters.scores import ScoreSheet
from polygraft.protos import aliases_pb2, events_pb2, gate_pb2

_POLICY_FIELDS = {
    "min_row_count": "min_rows",
    "min_delta": "min_delta",
    "tolerance": "tolerance",
    "max_stop_rate_drop": "max_stop_rate_drop",
    "max_length_ratio": "max_length_ratio",
    "max_latency_ratio": "max_latency_ratio",
    "beats_base": "beats_base",
}


def timestamp(seconds: float) -> Timestamp:
    """From seconds since the epoch."""
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def write_alias(record: AliasRecord) -> aliases_pb2.Alias:
    """Where an alias points, and how it came there."""
    return aliases_pb2.Alias(
        adapter_name=record.adapter_name,
        alias=record.alias,
        version_number=record.number,
        digest=record.digest,
        generation=record.generation,
        update_time=timestamp(record.moved_at),
        reason=record.reason,
        targets=[
            aliases_pb2.AliasTarget(version_number=t.number, weight=t.weight, digest=t.digest)
            for t in record.targets
        ],
        moved_by=record.moved_by,
        restored_generation=record.restored,
        is_forced=record.is_forced,
        policy=_write_policy(record.policy) if record.policy else None,
        verdict=_write_verdict(record.verdict) if record.verdict else None,
    )


def read_targets(message: aliases_pb2.UpdateAliasRequest) -> list[tuple[int, int]]:
    """Version numbers with weights; empty when the request names none."""
    if message.targets and message.version_number:
        raise InvalidRequest(
            "version_number and targets are both set; one of them says where to point.",
            item="targets",
            hint="Put the one version into targets as well.",
        )
    if message.targets:
        return [(target.version_number, target.weight) for target in message.targets]
    return [(message.version_number, WHOLE)] if message.version_number else []


def read_evidence(message: gate_pb2.GateEvidence) -> Evidence:
    """Ids of scores."""
    return Evidence(message.candidate_score, message.current_score, message.base_score)


def read_policy(message: gate_pb2.GatePolicy) -> GatePolicy:
    """With the defaults for what is unset."""
    given = {
        name: getattr(message, field)
        for field, name in _POLICY_FIELDS.items()
        if message.HasField(field)
    }
    policy = GatePolicy(
        required=message.is_required, data_sha256=message.data_sha256, metric=message.metric
    )
    return replace(policy, **given)


def read_sheet(
    message: gate_pb2.RecordScoreRequest, digest: str | None, base_weights_sha256: str, by: str
) -> ScoreSheet:
    """A score to be kept. Raises InvalidRequest, naming the field."""
    try:
        return ScoreSheet.model_validate(
            {
                "schema": "polygraft.score/1",
                "version": digest,
                "base_weights_sha256": base_weights_sha256,
                "metric": message.metric,
                "signature": message.signature,
                "data_sha256": message.data_sha256,
                "data_name": message.data_name,
                "decoding": message.decoding,
                "values": _decimals("values", message.values),
                "stopped": tuple(message.stopped),
                "output_tokens": tuple(message.output_token_counts),
                "seconds": _decimals("latency_seconds", message.latency_seconds),
                "groups": tuple(message.groups),
                "measured_by": by,
                "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidRequest(
            f"{first['msg']}.",
            item=".".join(str(part) for part in first["loc"]) or "values",
            found=str(first["input"])[:80],
        ) from error


def write_score(score_id: str, sheet: ScoreSheet) -> gate_pb2.Score:
    """A score that was kept."""
    return gate_pb2.Score(
        score_id=score_id,
        digest=sheet.version or "",
        metric=sheet.metric,
        mean=sheet.mean,
        row_count=sheet.rows,
    )


def write_event(event: AdapterEvent, cursor: str) -> events_pb2.AdapterEvent:
    """One event with the place behind it."""
    return events_pb2.AdapterEvent(
        kind=f"ADAPTER_EVENT_KIND_{event.kind.name}",
        cursor=cursor,
        event_time=timestamp(event.at),
        adapter_name=event.adapter_name,
        version_number=event.number,
        digest=event.digest,
        alias=write_alias(event.alias) if event.alias else None,
        tier=event.tier,
        detail=event.detail,
    )


def write_place(cursor: str, *, missed: bool) -> events_pb2.AdapterEvent:
    """A watch begins at this place, or goes on behind a gap."""
    kinds = events_pb2.AdapterEventKind
    kind = kinds.ADAPTER_EVENT_KIND_MISSED if missed else kinds.ADAPTER_EVENT_KIND_WATCHING
    now = datetime.now(UTC).timestamp()
    return events_pb2.AdapterEvent(kind=kind, cursor=cursor, event_time=timestamp(now))


def _write_policy(policy: GatePolicy) -> gate_pb2.GatePolicy:
    return gate_pb2.GatePolicy(
        is_required=policy.required,
        data_sha256=policy.data_sha256,
        metric=policy.metric,
        **{field: getattr(policy, name) for field, name in _POLICY_FIELDS.items()},
    )


def _write_verdict(verdict: GateVerdict) -> gate_pb2.GateVerdict:
    return gate_pb2.GateVerdict(
        passed=verdict.passed,
        metric=verdict.metric,
        signature=verdict.signature,
        data_sha256=verdict.data_sha256,
        data_name=verdict.data_name,
        row_count=verdict.rows,
        against=verdict.against,
        candidate_mean=verdict.candidate,
        current_mean=verdict.current,
        base_mean=verdict.base,
        delta=verdict.delta,
        delta_lower=verdict.lower,
        delta_upper=verdict.upper,
        checks=[
            gate_pb2.GateCheck(name=c.name, found=c.found, needed=c.needed, passed=c.passed)
            for c in verdict.checks
        ],
        evidence=gate_pb2.GateEvidence(
            candidate_score=verdict.candidate_score,
            current_score=verdict.current_score,
            base_score=verdict.base_score,
        ),
    )


def _decimals(item: str, values: Sequence[float]) -> tuple[str, ...]:
    """As canonical JSON wants fractions. Six digits are more than any metric has."""
    for index, value in enumerate(values):
        if not math.isfinite(value) or abs(value) >= 1e9:
            raise InvalidRequest(
                f"{value!r} is no score.", item=f"{item}[{index}]", found=value, allowed="finite"
            )
    return tuple(f"{value:.6f}" for value in values)
