"""What an alias points to: one version, or two between which requests are split by weight.

Knows no store. The split is sticky: whoever sends the same request key gets the same version for
as long as the weights stand, and stays with the canary when its weight grows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polygraft.adapters.errors import AdapterCorrupt, InvalidRequest
from polygraft.adapters.gate_policy import GatePolicy
from polygraft.adapters.gate_verdict import GateVerdict

WHOLE = 10_000  # weights are in 1/10000 and add up to this
MAX_TARGETS = 2
MAX_REASON_BYTES = 1024  # kept for ever and listed with the alias
_SALT_BYTES = 8


@dataclass(frozen=True, slots=True)
class Target:
    """A version and the share of requests it gets, in 1/10000."""

    digest: str
    number: int
    weight: int = WHOLE


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """One move of an alias; `generation` counts moves from 1. A removal has no targets.

    `targets`: the version in charge, and behind it the canary if there is one. `restored` is the
    generation whose targets a rollback brought back, else 0. `policy` is in force from here on;
    `verdict` are the numbers on which the gate decided, if it was asked.
    """

    adapter_name: str
    alias: str
    targets: tuple[Target, ...]
    generation: int
    moved_at: float  # seconds since the epoch
    reason: str
    moved_by: str = ""
    salt: str = ""
    restored: int = 0
    is_forced: bool = False
    policy: GatePolicy | None = None
    verdict: GateVerdict | None = None

    @property
    def is_removed(self) -> bool:
        """Whether this move took the alias away."""
        return not self.targets

    @property
    def digest(self) -> str:
        """The version in charge; "" after a removal."""
        return self.targets[0].digest if self.targets else ""

    @property
    def number(self) -> int:
        """Its number; 0 after a removal."""
        return self.targets[0].number if self.targets else 0

    @property
    def is_gated(self) -> bool:
        """Whether no version may come in that has not passed a gate."""
        return self.policy is not None and self.policy.required

    @property
    def canary(self) -> Target | None:
        """The second target; None where all requests go to one version."""
        return self.targets[1] if len(self.targets) > 1 else None

    def target_for(self, request_key: str | None) -> Target:
        """The target that serves requests of this key; None: the version in charge."""
        canary = self.canary
        if canary is None or request_key is None:
            return self.targets[0]
        return canary if bucket_of(self.salt, request_key) < canary.weight else self.targets[0]


@dataclass(frozen=True, slots=True)
class AliasMove:
    """What one move is to write.

    `expected_generation` None moves unconditionally, 0 demands that the alias does not exist.
    `policy` None keeps the one in force. `salt` None keeps the split of those who stay, see
    `salt_after`.
    """

    targets: tuple[Target, ...]
    expected_generation: int | None = None
    reason: str = ""
    by: str = ""
    restored: int = 0
    is_forced: bool = False
    policy: GatePolicy | None = None
    verdict: GateVerdict | None = None
    salt: str | None = None

    @property
    def is_cleared(self) -> bool:
        """Whether it may bring a new version in where the alias demands a gate."""
        passed = self.verdict is not None and self.verdict.passed
        return passed or self.is_forced or self.restored > 0


def bucket_of(salt: str, request_key: str) -> int:
    """0 to 9999, evenly spread over keys; all keys below a weight belong to the canary."""
    digest = hashlib.sha256((salt + request_key).encode()).digest()
    return int.from_bytes(digest[:8]) % WHOLE


def check_targets(targets: tuple[Target, ...]) -> None:
    """InvalidRequest unless there are one or two different versions whose weights make 10000."""
    weights = [target.weight for target in targets]
    problem = None
    if not 1 <= len(targets) <= MAX_TARGETS:
        problem = f"{len(targets)} targets are given"
    elif len({target.number for target in targets}) < len(targets):
        problem = f"version {targets[0].number} is given twice"
    elif min(weights) < 1 or sum(weights) != WHOLE:
        problem = f"the weights are {', '.join(map(str, weights))}"
    if problem:
        raise InvalidRequest(
            f"{problem}.",
            reason="INVALID_TARGETS",
            item="targets",
            found=", ".join(f"{t.number}={t.weight}" for t in targets),
            allowed=f"1 or 2 versions, weights of at least 1 that add up to {WHOLE}",
            hint=f"Give 1 or 2 versions with weights of at least 1 that add up to {WHOLE}.",
        )


def check_reason(reason: str) -> None:
    """InvalidRequest when it is too long to be kept."""
    size = len(reason.encode())
    if size > MAX_REASON_BYTES:
        raise InvalidRequest(
            f"{size} bytes are more than the {MAX_REASON_BYTES} allowed.",
            reason="LIMIT_EXCEEDED",
            item="reason",
            found=size,
            allowed=MAX_REASON_BYTES,
        )


def candidate_of(current: AliasRecord | None, targets: tuple[Target, ...]) -> Target | None:
    """The version that a move gives more requests to, other than the one in charge; None: none.

    InvalidRequest when there are two: a gate compares one candidate with what is served.
    """
    before = {target.digest: target.weight for target in current.targets} if current else {}
    rising = [
        target
        for target in targets
        if target.weight > before.get(target.digest, 0)
        and (current is None or target.digest != current.digest)
    ]
    if len(rising) > 1:
        raise InvalidRequest(
            f"versions {rising[0].number} and {rising[1].number} are both new to the alias.",
            reason="INVALID_TARGETS",
            item="targets",
            hint="Bring one in at a time: a gate compares one candidate with what is served.",
        )
    return rising[0] if rising else None


def salt_after(current: AliasRecord | None, targets: tuple[Target, ...]) -> str:
    """The salt of a move: kept while weights change, new when a version comes in.

    Why not one for ever: the same requests would go first with every canary.
    """
    known = {target.digest for target in current.targets} if current else set()
    if current is not None and current.salt and all(t.digest in known for t in targets):
        return current.salt
    return secrets.token_hex(_SALT_BYTES)


def encode_move(move: AliasMove, current: AliasRecord | None, previous: int) -> dict[str, Any]:
    """The log entry of a move that follows generation `previous`."""
    policy = move.policy or (current.policy if current else None)
    return {
        "targets": [
            {"version": t.digest, "number": t.number, "weight": t.weight} for t in move.targets
        ],
        "previous": previous,
        "reason": move.reason,
        "by": move.by,
        "salt": move.salt or salt_after(current, move.targets),
        "restored": move.restored,
        "forced": move.is_forced,
        "policy": policy.as_json() if policy else None,
        "verdict": move.verdict.as_json() if move.verdict else None,
    }


def decode_move(name: str, alias: str, generation: int, entry: Mapping[str, Any]) -> AliasRecord:
    """The record of a log entry; AdapterCorrupt when it lacks its fields."""
    try:
        return AliasRecord(
            adapter_name=name,
            alias=alias,
            targets=tuple(
                Target(str(t["version"]), int(t["number"]), int(t.get("weight", WHOLE)))
                for t in entry["targets"]
            ),
            generation=generation,
            moved_at=float(entry["at"]),
            reason=str(entry["reason"]),
            moved_by=str(entry.get("by", "")),
            salt=str(entry.get("salt", "")),
            restored=int(entry.get("restored", 0)),
            is_forced=bool(entry.get("forced", False)),
            policy=GatePolicy.read(entry["policy"]) if entry.get("policy") else None,
            verdict=GateVerdict.read(entry["verdict"]) if entry.get("verdict") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterCorrupt(
            f"generation {generation} of {name}@{alias} lacks its fields.", item=alias
        ) from error
