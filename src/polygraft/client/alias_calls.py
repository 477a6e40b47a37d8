"""The unary methods of aliases and scores; see calls.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

from polygraft.adapters.errors import InvalidRequest
from polygraft.client.alias_results import WHOLE, Alias, GatePolicy, RecordedScore
from polygraft.client.call import Call
from polygraft.protos import aliases_pb2, gate_pb2


def move_alias(
    name: str,
    alias: str,
    number: int,
    *,
    canary: int | None = None,
    canary_weight: float = 0.05,
    expected_generation: int | None = None,
    reason: str = "",
    candidate_score: str = "",
    current_score: str = "",
    base_score: str = "",
    policy: GatePolicy | None = None,
    force: bool = False,
    timeout: float | None = None,
) -> Call[Alias]:
    """Point an alias at a version, or send `canary_weight` (0 to 1) of its requests to `canary`.

    AliasConflict if it is not at `expected_generation`; GateRefused if the scores, by the ids of
    `record_score`, do not let the version in. `policy` is kept with the alias.
    """
    request = aliases_pb2.UpdateAliasRequest(
        adapter_name=name,
        alias=alias,
        targets=_targets(number, canary, canary_weight),
        expected_generation=expected_generation,
        reason=reason,
        policy=policy.write() if policy else None,
        force=force,
    )
    if candidate_score:
        request.gate.candidate_score = candidate_score
        request.gate.current_score = current_score
        request.gate.base_score = base_score
    return Call("UpdateAlias", request, Alias.read, timeout)


def rollback_alias(
    name: str,
    alias: str = "live",
    *,
    generation: int = 0,
    expected_generation: int | None = None,
    reason: str = "",
) -> Call[Alias]:
    """Bring the targets of an older generation back, at once and without a gate.

    0: the last that sent every request to one version, other than now.
    """
    request = aliases_pb2.RollbackAliasRequest(
        adapter_name=name,
        alias=alias,
        generation=generation,
        expected_generation=expected_generation,
        reason=reason,
    )
    return Call("RollbackAlias", request, Alias.read)


def delete_alias(
    name: str, alias: str, *, expected_generation: int | None = None, reason: str = ""
) -> Call[None]:
    """Take an alias away; its history stays."""
    request = aliases_pb2.DeleteAliasRequest(
        adapter_name=name, alias=alias, expected_generation=expected_generation, reason=reason
    )
    return Call("DeleteAlias", request, lambda _: None)


def alias_history(name: str, alias: str, page_token: str) -> Call[tuple[list[Alias], str]]:
    """A page of moves, the newest first, and the token of the next."""
    request = aliases_pb2.ListAliasHistoryRequest(
        adapter_name=name, alias=alias, page_token=page_token
    )
    return Call(
        "ListAliasHistory",
        request,
        lambda response: ([Alias.read(move) for move in response.moves], response.next_page_token),
    )


def record_score(
    adapter: str,
    values: Sequence[float],
    *,
    metric: str,
    signature: str,
    data_sha256: str,
    data_name: str = "",
    decoding: str,
    stopped: Sequence[bool],
    output_tokens: Sequence[int],
    seconds: Sequence[float],
    groups: Sequence[int] = (),
) -> Call[RecordedScore]:
    """Keep how a version ("": the base) answered every row of a set; `values` are in percent."""
    request = gate_pb2.RecordScoreRequest(
        adapter=adapter,
        metric=metric,
        signature=signature,
        data_sha256=data_sha256,
        data_name=data_name,
        decoding=decoding,
        values=values,
        stopped=stopped,
        output_token_counts=output_tokens,
        latency_seconds=seconds,
        groups=groups,
    )
    return Call("RecordScore", request, RecordedScore.read)


def _targets(number: int, canary: int | None, weight: float) -> list[aliases_pb2.AliasTarget]:
    if canary is None:
        return [aliases_pb2.AliasTarget(version_number=number, weight=WHOLE)]
    share = round(weight * WHOLE) if math.isfinite(weight) else 0
    if not 1 <= share < WHOLE:
        raise InvalidRequest(
            f"{weight!r} is no share of the requests; allowed: 0.0001 to 0.9999.",
            reason="INVALID_TARGETS",
            item="canary_weight",
            found=weight,
            allowed="0.0001 to 0.9999",
        )
    return [
        aliases_pb2.AliasTarget(version_number=number, weight=WHOLE - share),
        aliases_pb2.AliasTarget(version_number=canary, weight=share),
    ]
