"""Whether what a server computed with an adapter is what its probes say. Compares, runs nothing.

In float32 numbers must be equal but for the order of sums. In other dtypes rounding moves every
log-probability, so errors are held against the adapter's effect: a rank-16 LoRA applied without
its rsLoRA factor misses most of it, rounding misses little of it (docs/decisions/0016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid, PolygraftError
from polygraft.adapters.probes import Probes

EXACT_ERROR = 1e-3  # largest, of float32
RELATIVE_ERROR = 0.1  # of the effect, other dtypes, and
ROUNDING_ERRORS = 3  # times the error of the base, which is what rounding costs here
ROUNDED_BASE_ERROR = 0.25  # root mean square, other dtypes
LEAST_EFFECT = 1e-3  # largest change of a log-probability, for an adapter that does something
_MARGIN_ERRORS = 4  # a margin of so many errors decides which token comes


@dataclass(frozen=True, slots=True)
class Observed:
    """What a server computed for the probes."""

    base_logprobs: Tensor  # [P, 8, K] of `top_ids`, the base alone
    logprobs: Tensor  # [P, 8, K] with the adapter
    greedy_ids: Sequence[Sequence[int]]  # [P][16]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    measured: str
    allowed: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} {self.measured} (allowed: {self.allowed})"


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome of a test that was passed. `proven`: by the adapter's own probes."""

    proven: bool
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def compare_with_probes(
    probes: Probes, observed: Observed, *, is_exact: bool, allow_no_effect: bool = False
) -> Proof:
    """The proof, or the refusal with the numbers of all checks.

    `is_exact`: probes and server both compute in float32. Raises AdapterIncompatible when the base
    alone gives other numbers, AdapterInvalid (SELF_TEST_FAILED or NO_EFFECT) for the adapter.
    """
    base_error = observed.base_logprobs - probes.base_top_logprobs
    error = observed.logprobs - probes.top_logprobs
    effect = probes.top_logprobs - probes.base_top_logprobs
    margin = EXACT_ERROR * 2 if is_exact else _MARGIN_ERRORS * max(_rms(error), _rms(base_error))
    base = _base_check(base_error, is_exact)
    acts = _effect_check(effect, allow_no_effect)
    adapter = _adapter_check(error, effect, base_error, is_exact)
    greedy = _greedy_check(probes, observed.greedy_ids, margin)
    checks = (base, acts, adapter, greedy)
    if not base.passed:
        raise _refusal(
            AdapterIncompatible,
            checks,
            "the base alone gives other numbers than the base it was trained on",
            "Serve it on its own base, in a dtype near to that of its "
            "training, or retrain it on this one.",
        )
    if not acts.passed:
        raise _refusal(
            AdapterInvalid,
            checks,
            "the adapter changes nothing",
            "It was saved before "
            "training, or its gradients never arrived. Set allow_no_effect to publish it on "
            "purpose.",
            reason="NO_EFFECT",
        )
    if not (adapter.passed and greedy.passed):
        raise _refusal(
            AdapterInvalid,
            checks,
            "the adapter gives other numbers than in its training",
            "Upload the files of one run exactly as the trainer wrote them.",
        )
    return Proof(proven=True, checks=checks)


def _base_check(error: Tensor, is_exact: bool) -> Check:
    if is_exact:
        return _at_most("error of the base", _largest(error), EXACT_ERROR)
    return _at_most("error of the base", _rms(error), ROUNDED_BASE_ERROR)


def _effect_check(effect: Tensor, allow_none: bool) -> Check:
    largest = _largest(effect)
    passed = allow_none or largest >= LEAST_EFFECT
    return Check("effect", f"{largest:.3g}", f">= {LEAST_EFFECT:g}", passed)


def _adapter_check(error: Tensor, effect: Tensor, base_error: Tensor, is_exact: bool) -> Check:
    if is_exact:
        return _at_most("error of the adapter", _largest(error), EXACT_ERROR)
    allowed = RELATIVE_ERROR * _rms(effect) + ROUNDING_ERRORS * _rms(base_error)
    return _at_most("error of the adapter", _rms(error), allowed)


def _greedy_check(probes: Probes, greedy_ids: Sequence[Sequence[int]], margin: float) -> Check:
    """Tokens are compared as long as the choice between two was not too close."""
    compared = equal = 0
    for want, margins, got in zip(
        probes.greedy_ids.tolist(), probes.greedy_margin.tolist(), greedy_ids, strict=True
    ):
        for step, (token, ahead) in enumerate(zip(want, margins, strict=True)):
            if ahead < margin:
                break
            compared += 1
            if step >= len(got) or got[step] != token:
                break
            equal += 1
    name = "greedy tokens equal"
    return Check(name, f"{equal} of {compared}", f"{compared}", equal == compared)


def _refusal(
    kind: type[AdapterInvalid | AdapterIncompatible],
    checks: Sequence[Check],
    what: str,
    hint: str,
    *,
    reason: str = "SELF_TEST_FAILED",
) -> PolygraftError:
    failed = next(check for check in checks if not check.passed)
    return kind(
        f"the self-test failed: {what}. " + "; ".join(map(str, checks)) + ".",
        reason=reason,
        item=failed.name,
        found=failed.measured,
        allowed=failed.allowed,
        hint=hint,
        metadata={check.name: check.measured for check in checks},
    )


def _at_most(name: str, value: float, allowed: float) -> Check:
    return Check(name, f"{value:.3g}", f"<= {allowed:.3g}", value <= allowed)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
