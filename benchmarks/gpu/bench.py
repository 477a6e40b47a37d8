"""What every phase is given: the device, the sizes, a clock for its budget, a place to write."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(slots=True)
class Bench:
    """One phase under way. `rehearsal`: tiny sizes on the CPU, kernels interpreted."""

    out: Path  # records of this phase, one JSON object a line
    rehearsal: bool
    seconds: float  # the phase should stop by itself before they are over
    _start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return torch.device("cpu" if self.rehearsal else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. Rehearsed in float16: the interpreter has no bfloat16 products of its
        own, and the kernels of others ask for 16 bits."""
        return torch.float16 if self.rehearsal else torch.bfloat16

    @property
    def seconds_left(self) -> float:
        """Of the phase's own time."""
        return self.seconds - (time.monotonic() - self._start)

    def emit(self, kind: str, **values: Any) -> None:
        """Write one record at once: what comes later may fail or run out of time."""
        record = {"kind": kind, **{k: _rounded(v) for k, v in values.items()}}
        with self.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete records of a phase; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
