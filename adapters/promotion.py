"""Promotion and rollback: moves of aliases, judged by a gate where one is asked for.

The registry writes the move; this decides whether it may. A gate is judged on the record that the
move then replaces, by compare-and-swap, so no other move can come between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polygraft.adapters.alias_records import AliasMove, AliasRecord, Target, candidate_of
from polygraft.adapters.aliases import conflict
from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.gate import Contest, Scored, judge, refusal_of
from polygraft.adapters.gate_policy import GatePolicy
from polygraft.adapters.gate_verdict import GateVerdict
from polygraft.adapters.names import not_found
from polygraft.adapters.registry import Registry
from polygraft.adapters.scores import ScoreBook


@dataclass(frozen=True, slots=True)
class Evidence:
    """Ids of score sheets: of the candidate, of the version served now, of the base alone."""

    candidate_score: str
    current_score: str = ""
    base_score: str = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """One wish to move an alias. `targets`: version numbers with weights in 1/10000.

    `evidence` asks for a gate, also where the alias does not. `policy` is in force from this move
    on; it judges this one only where the alias had none. `force` moves whatever the gate says.
    """

    adapter_name: str
    alias: str
    targets: Sequence[tuple[int, int]]
    expected_generation: int | None = None
    reason: str = ""
    by: str = ""
    evidence: Evidence | None = None
    policy: GatePolicy | None = None
    force: bool = False


class Promotions:
    """Moves aliases of a registry. Thread-safe; calls block on I/O.

    `is_verified(digest)` says whether a version was made for this server's base, whose weights
    have the hash `base_weights_sha256`.
    """

    def __init__(
        self,
        registry: Registry,
        scores: ScoreBook,
        *,
        base_weights_sha256: str,
        is_verified: Callable[[str], bool],
    ) -> None:
        self._registry = registry
        self._scores = scores
        self._base = base_weights_sha256
        self._is_verified = is_verified

    def promote(self, wish: Promotion) -> AliasRecord:
        """The new record. Raises AliasConflict, GateRefused, AdapterNotFound, InvalidRequest."""
        if wish.policy is not None:
            wish.policy.check()
        if wish.force and not wish.reason.strip():
            raise InvalidRequest(
                "a forced move needs a reason, which is kept with it.", item="reason"
            )
        targets = self._targets(wish)
        expected, verdict = wish.expected_generation, None
        if wish.evidence is not None:
            current = self._registry.alias(wish.adapter_name, wish.alias)
            expected = self._generation_of(wish, current)
            verdict = self._judge(wish, wish.evidence, current, targets)
            if not verdict.passed and not wish.force:
                raise refusal_of(verdict)
        move = AliasMove(
            targets=targets,
            expected_generation=expected,
            reason=wish.reason,
            by=wish.by,
            is_forced=wish.force,
            policy=wish.policy,
            verdict=verdict,
        )
        return self._registry.write_alias(wish.adapter_name, wish.alias, move)

    def roll_back(
        self,
        name: str,
        alias: str,
        *,
        generation: int = 0,
        expected_generation: int | None = None,
        reason: str = "",
        by: str = "",
    ) -> AliasRecord:
        """Back to the targets of an older generation, as a new one; never gated.

        `generation` 0: the last that sent every request to one version, other than now. A second
        rollback goes further back, not forward again.
        """
        history = self._registry.alias_history(name, alias)
        if not history or history[-1].is_removed:
            names = [f"{name}@{record.alias}" for record in self._registry.aliases(name)]
            raise not_found("alias", f"{name}@{alias}", names)
        current = history[-1]
        old = _older(history, generation) if generation else _last_good(history)
        move = AliasMove(
            targets=old.targets,
            # Why always: what is undone is what was there when the older one was chosen.
            expected_generation=(
                current.generation if expected_generation is None else expected_generation
            ),
            reason=reason or f"rollback to generation {old.generation}",
            by=by,
            restored=old.generation,
            salt=old.salt or None,
        )
        return self._registry.write_alias(name, alias, move)

    def _targets(self, wish: Promotion) -> tuple[Target, ...]:
        return tuple(
            Target(self._registry.version(wish.adapter_name, number).digest, number, weight)
            for number, weight in wish.targets
        )

    def _generation_of(self, wish: Promotion, current: AliasRecord | None) -> int:
        """The generation that is judged. Why another expectation fails here: the scores would be
        of a version that is not served any more.
        """
        generation = current.generation if current else 0
        if wish.expected_generation not in (None, generation):
            raise conflict(wish.adapter_name, wish.alias, wish.expected_generation, generation)
        return generation

    def _judge(
        self,
        wish: Promotion,
        evidence: Evidence,
        current: AliasRecord | None,
        targets: tuple[Target, ...],
    ) -> GateVerdict:
        candidate = candidate_of(current, targets)
        if candidate is None:
            raise InvalidRequest(
                "this move brings no version in, so there is nothing to judge.",
                item="gate",
                hint="Leave the scores out.",
            )
        in_charge = current.digest if current else ""
        policy = (current.policy if current else None) or wish.policy or GatePolicy()
        if current is not None and not evidence.current_score:
            raise InvalidRequest(
                f"a score of the version served now, number {current.number}, is missing.",
                item="gate.current_score",
                hint="Record one on the same rows.",
            )
        contest = Contest(
            candidate_digest=candidate.digest,
            current_digest=in_charge,
            manifest=self._registry.manifest(candidate.digest),
            verified=self._is_verified(candidate.digest),
            base_weights_sha256=self._base,
            candidate=self._scored(evidence.candidate_score),
            current=self._scored(evidence.current_score) if current else None,
            base=self._scored(evidence.base_score) if evidence.base_score else None,
        )
        return judge(policy, contest)

    def _scored(self, score_id: str) -> Scored:
        return Scored(score_id, self._scores.get(score_id))


def _older(history: Sequence[AliasRecord], generation: int) -> AliasRecord:
    found = [record for record in history[:-1] if record.generation == generation]
    if not found or found[0].is_removed:
        raise InvalidRequest(
            f"generation {generation} of {history[-1].adapter_name}@{history[-1].alias} "
            f"{'took the alias away' if found else 'is not an older one'}.",
            item="generation",
            found=generation,
            allowed=f"1 to {history[-1].generation - 1}",
            hint="See `polygraft adapters history`.",
        )
    return found[0]


def _last_good(history: Sequence[AliasRecord]) -> AliasRecord:
    """The last generation with one target, other than now's; behind what a rollback restored.

    Why no split: who rolls back a canary wants none of its answers any more.
    """
    current = history[-1]
    before = current.restored or current.generation
    for record in reversed(history):
        is_older = record.generation < before and not record.is_removed
        if is_older and record.canary is None and record.targets != current.targets:
            return record
    raise InvalidRequest(
        f"{current.adapter_name}@{current.alias} has no older version to go back to.",
        item="generation",
        hint="See `polygraft adapters history`, or name a generation.",
    )
