"""Judges whether a version may come in: its scores against those of the version served now.

Knows no aliases and no store: sheets and facts go in, a verdict comes out. Raises InvalidRequest
only for sheets that cannot be compared at all; everything else is a check that fails by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polygraft.adapters.bootstrap import mean_interval
from polygraft.adapters.errors import GateRefused, InvalidRequest
from polygraft.adapters.gate_policy import GatePolicy
from polygraft.adapters.gate_verdict import GateCheck, GateVerdict
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.scores import ScoreSheet

PERCENTILE = 95


@dataclass(frozen=True, slots=True)
class Scored:
    """A sheet and its id."""

    score_id: str
    sheet: ScoreSheet


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is compared. `current` None: nothing is served yet, so the base is what must be beaten.

    `verified`: the candidate's manifest declares this server's base.
    """

    candidate_digest: str
    current_digest: str
    manifest: Manifest
    verified: bool
    base_weights_sha256: str
    candidate: Scored
    current: Scored | None
    base: Scored | None


def judge(policy: GatePolicy, contest: Contest) -> GateVerdict:
    """Every check of the policy. InvalidRequest when the sheets are of other versions or sets."""
    _check_comparable(contest)
    candidate = contest.candidate.sheet
    other = contest.current or contest.base
    if other is None:
        raise InvalidRequest(
            "there is nothing to compare the candidate with.",
            item="gate.base_score",
            hint="Record a score of the base alone, since the alias serves no version yet.",
        )
    differences = [a - b for a, b in zip(candidate.numbers, other.sheet.numbers, strict=True)]
    lower, upper = mean_interval(differences, candidate.groups)
    delta = sum(differences) / len(differences)
    return GateVerdict(
        candidate_digest=contest.candidate_digest,
        current_digest=contest.current_digest,
        candidate_score=contest.candidate.score_id,
        current_score=contest.current.score_id if contest.current else "",
        base_score=contest.base.score_id if contest.base else "",
        metric=candidate.metric,
        signature=candidate.signature,
        data_sha256=candidate.data_sha256,
        data_name=candidate.data_name,
        rows=candidate.rows,
        against="current" if contest.current else "base",
        candidate=candidate.mean,
        current=contest.current.sheet.mean if contest.current else None,
        base=contest.base.sheet.mean if contest.base else None,
        delta=delta,
        lower=lower,
        upper=upper,
        checks=(
            *_set_checks(policy, contest),
            *_score_checks(policy, contest, delta, lower, upper),
            *_guards(policy, candidate, contest.current),
        ),
    )


def refusal_of(verdict: GateVerdict) -> GateRefused:
    """The error that tells a caller why, with every check in `metadata`."""
    failed = "; ".join(check.line for check in verdict.failures)
    return GateRefused(
        f"the gate refuses the version. {failed}.",
        item="gate",
        hint="Train a better one, or force the move and say why.",
        metadata={
            "metric": verdict.metric,
            "rows": str(verdict.rows),
            "against": verdict.against,
            **{
                f"check_{index}": "|".join(
                    (check.name, check.found, check.needed, "passed" if check.passed else "failed")
                )
                for index, check in enumerate(verdict.checks)
            },
        },
    )


def _check_comparable(contest: Contest) -> None:
    candidate = contest.candidate.sheet
    wanted = (
        ("candidate_score", contest.candidate, contest.candidate_digest),
        ("current_score", contest.current, contest.current_digest),
        ("base_score", contest.base, None),
    )
    for item, scored, digest in wanted:
        if scored is None:
            continue
        if scored.sheet.version != digest:
            raise _mismatch(item, "version", scored.sheet.version, digest or "the base alone")
        if scored.sheet.base_weights_sha256 != contest.base_weights_sha256:
            found = scored.sheet.base_weights_sha256
            raise _mismatch(item, "base", found, contest.base_weights_sha256)
        for field in ("metric", "data_sha256", "signature", "decoding", "rows", "groups"):
            found, allowed = getattr(scored.sheet, field), getattr(candidate, field)
            if found != allowed:
                raise _mismatch(item, field, found, allowed)


def _mismatch(item: str, field: str, found: object, allowed: object) -> InvalidRequest:
    return InvalidRequest(
        f"its {field} is {str(found)[:80]}, not {str(allowed)[:80]}: the scores do not compare.",
        reason="SCORES_DIFFER",
        item=f"gate.{item}",
        found=found,
        allowed=allowed,
        hint="Score every version again, on one set and with one setting.",
    )


def _set_checks(policy: GatePolicy, contest: Contest) -> Iterator[GateCheck]:
    sheet, manifest = contest.candidate.sheet, contest.manifest
    if policy.data_sha256:
        named = sheet.data_sha256 == policy.data_sha256
        yield GateCheck("set", sheet.data_sha256[:16], policy.data_sha256[:16], named)
    if policy.metric:
        is_right = sheet.metric == policy.metric
        yield GateCheck("metric", sheet.metric, policy.metric, is_right)
    used = [d.split for d in manifest.data if d.sha256 == sheet.data_sha256 and d.split != "test"]
    found = f"its {used[0]} rows" if used else "held out"
    yield GateCheck("seen", found, "not its training or validation rows", not used)
    enough = sheet.rows >= policy.min_rows
    yield GateCheck("rows", str(sheet.rows), f"at least {policy.min_rows}", enough)
    base = "verified" if contest.verified else "unverified"
    yield GateCheck("base model", base, "verified", contest.verified)


def _score_checks(
    policy: GatePolicy, contest: Contest, delta: float, lower: float, upper: float
) -> Iterator[GateCheck]:
    """A tie keeps the version that is served: the difference must be above 0."""
    least = policy.min_delta
    needed = f"at least {least:+.2f}" if least > 0 else "above 0"
    passed = delta > 0 and delta >= least
    yield GateCheck("difference", f"{delta:+.2f}", needed, passed)
    interval = f"{lower:+.2f} to {upper:+.2f}"
    above = f"above {-policy.tolerance:+.2f}"
    yield GateCheck("95% interval", interval, above, lower > -policy.tolerance)
    if policy.beats_base:
        mean = contest.candidate.sheet.mean
        if contest.base is None:
            yield GateCheck("base score", "not measured", f"below {mean:.2f}", False)
        else:
            base = contest.base.sheet.mean
            yield GateCheck("base score", f"{base:.2f}", f"below {mean:.2f}", mean > base)


def _guards(
    policy: GatePolicy, candidate: ScoreSheet, current: Scored | None
) -> Iterator[GateCheck]:
    if current is None:
        return
    served = current.sheet
    least = served.stop_rate - policy.max_stop_rate_drop
    rate = candidate.stop_rate
    yield GateCheck("stop rate", f"{rate:.1f} %", f"at least {least:.1f} %", rate >= least)
    length = _percentile(candidate.output_tokens)
    most = policy.max_length_ratio * max(1.0, _percentile(served.output_tokens))
    yield GateCheck("p95 tokens", f"{length:.0f}", f"at most {most:.0f}", length <= most)
    seconds = _percentile([float(value) for value in candidate.seconds])
    bound = policy.max_latency_ratio * _percentile([float(value) for value in served.seconds])
    yield GateCheck("p95 seconds", f"{seconds:.3f}", f"at most {bound:.3f}", seconds <= bound)


def _percentile(values: tuple[int, ...] | list[float]) -> float:
    return float(np.percentile(values, PERCENTILE))
