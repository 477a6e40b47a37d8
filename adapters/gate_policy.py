"""What a candidate must show before an alias lets it in. Plain data; the judging is in gate.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from polygraft.adapters.errors import InvalidRequest

_LARGEST = {
    "min_rows": 10_000.0,
    "min_delta": 100.0,
    "tolerance": 100.0,
    "max_stop_rate_drop": 100.0,
    "max_length_ratio": 1000.0,
    "max_latency_ratio": 1000.0,
}


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """Kept with an alias. Differences are in points of a metric in percent.

    `required`: no version comes in without a passed gate, unless forced. `data_sha256` and
    `metric` name the set and the metric that count; "": any.
    """

    required: bool = False
    data_sha256: str = ""
    metric: str = ""
    min_rows: int = 100
    min_delta: float = 0.0  # candidate - current must be at least this, and above 0
    tolerance: float = 0.5  # the lower bootstrap bound of the difference must be above -tolerance
    max_stop_rate_drop: float = 2.0  # share of answers that end by themselves
    max_length_ratio: float = 1.5  # of the 95th percentiles of output tokens
    max_latency_ratio: float = 2.0  # of the 95th percentiles of seconds per answer
    beats_base: bool = True  # the candidate must be better than the base alone

    def as_json(self) -> dict[str, Any]:
        """For the log entry of an alias."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """From a log entry; TypeError or ValueError when it is none."""
        return cls(**value)

    def check(self) -> None:
        """InvalidRequest naming the field that is out of range."""
        for field, most in _LARGEST.items():
            value = getattr(self, field)
            if not math.isfinite(value) or not 0 <= value <= most:
                raise InvalidRequest(
                    f"{value!r} is out of range.",
                    reason="INVALID_POLICY",
                    item=f"policy.{field}",
                    found=value,
                    allowed=f"0 to {most:g}",
                )
