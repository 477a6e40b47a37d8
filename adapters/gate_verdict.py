"""What a gate found: the scores compared, and each demand with whether it was met. Plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One demand: its name, what was found, what is needed, whether it is met."""

    name: str
    found: str
    needed: str
    passed: bool

    @property
    def line(self) -> str:
        """For messages."""
        return f"{self.name}: {self.found} (needed: {self.needed})"


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The numbers of one gate. Scores are means over rows; ids are those of score sheets.

    `against` is "current", or "base" where nothing was served yet. `lower` and `upper` bound
    candidate - reference with 95 % confidence.
    """

    candidate_digest: str
    current_digest: str
    candidate_score: str
    current_score: str
    base_score: str
    metric: str
    signature: str
    data_sha256: str
    data_name: str
    rows: int
    against: str
    candidate: float
    current: float | None
    base: float | None
    delta: float
    lower: float
    upper: float
    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every demand is met."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[GateCheck, ...]:
        """The demands that are not met."""
        return tuple(check for check in self.checks if not check.passed)

    def as_json(self) -> dict[str, Any]:
        """For the log entry of an alias."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """From a log entry; KeyError, TypeError or ValueError when it is none."""
        checks = tuple(GateCheck(**check) for check in value["checks"])
        return cls(**{**value, "checks": checks})
