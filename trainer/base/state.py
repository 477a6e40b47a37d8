"""The state of a pre-training run on disk, so that it can be continued."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Position:
    """Where a run stands: after `step` batches, in a shard whose first batch was `shard_start`.

    `tokens` (padding not counted) and `cpu_seconds` count from the start of the run, over all
    its continuations.
    """

    step: int = 0
    tokens: int = 0
    shard: int = 0
    shard_start: int = 0
    cpu_seconds: float = 0.0


class Stateful(Protocol):
    """A part of a run whose state can be saved: the model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def save_state(file: Path, parts: Sequence[Stateful], at: Position) -> None:
    """Replaces `file` in one step: an interrupted save leaves the previous state."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save({"at": asdict(at), "parts": [part.state_dict() for part in parts]}, partial)
    partial.replace(file)


def load_state(file: Path, parts: Sequence[Stateful]) -> Position:
    """Puts a saved state into `parts`; the rates then follow the schedules given, not the saved."""
    state = torch.load(file, weights_only=True)
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
        if isinstance(part, LambdaLR):
            for group, peak, factor in zip(
                part.optimizer.param_groups, part.base_lrs, part.lr_lambdas, strict=True
            ):
                group["lr"] = peak * factor(part.last_epoch)
    return Position(**state["at"])
