"""The memory of a recipe's largest step: predicted, measured, and how far the two are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polygraft.trainer.encode import Encoded
from polygraft.trainer.memory import KINDS, MemoryUse, measure, predict
from polygraft.trainer.packing import training_collator

if TYPE_CHECKING:
    from rich.table import Table

    from polygraft.trainer.prepare import Prepared


@dataclass(frozen=True)
class MemoryAccount:
    """One recipe's step of most tokens: `rows` rows of up to `length` tokens."""

    rows: int
    length: int
    predicted: MemoryUse
    measured: int | None = None
    """Bytes at the peak of a real step; None before there was one."""

    @property
    def error(self) -> float | None:
        """Of the predicted peak, in percent of the measured one."""
        return None if not self.measured else 100.0 * (self.predicted.peak / self.measured - 1)

    def as_json(self) -> dict[str, Any]:
        """For report.json and `--json`; bytes."""
        error = None if self.error is None else round(self.error, 2)
        record = {"rows": self.rows, "length": self.length, "predicted": asdict(self.predicted)}
        return {**record, "measured_peak": self.measured, "error_percent": error}

    def sentence(self) -> str:
        """For the terminal, after a run."""
        text = f"memory of a step: predicted {megabytes(self.predicted.peak)}"
        if self.measured is None or self.error is None:
            return text
        return f"{text}, measured {megabytes(self.measured)} ({self.error:+.1f} %)"


def predict_account(model: nn.Module, prepared: Prepared) -> MemoryAccount:
    """Before a run: the model is only looked at. Raises RuntimeError or NotImplementedError where
    an operator has no fake counterpart."""
    rows = largest_batch(prepared.train, prepared.config.optim.batch)
    was_training = model.training
    model.train()
    try:
        use = predict(model, _optimizer, _inputs(rows, prepared), bf16=_is_bf16(prepared))
    finally:
        model.train(was_training)
    return MemoryAccount(len(rows), max(len(row.input_ids) for row in rows), use)


def measure_account(account: MemoryAccount, model: nn.Module, prepared: Prepared) -> MemoryAccount:
    """After a run: two real steps, which change the model."""
    rows = largest_batch(prepared.train, prepared.config.optim.batch)
    model.train()
    measured = measure(model, _optimizer, _inputs(rows, prepared), bf16=_is_bf16(prepared))
    return MemoryAccount(account.rows, account.length, account.predicted, measured)


def largest_batch(rows: Sequence[Encoded], batch: int) -> list[Encoded]:
    """As many of the longest rows as a batch holds."""
    return sorted(rows, key=lambda row: -len(row.input_ids))[:batch]


def memory_table(account: MemoryAccount) -> Table:
    """Kinds down; bytes and multiples of the weights."""
    from rich.table import Table

    title = f"a step of {account.rows} rows of up to {account.length} tokens"
    table = Table("largest of each kind", title=title, title_justify="left")
    table.add_column("predicted", justify="right")
    table.add_column("x weights", justify="right")
    weights = account.predicted.weights
    for kind in (*KINDS, "peak"):
        size = getattr(account.predicted, kind)
        table.add_row(kind, megabytes(size), f"{size / weights:.2f}")
    if account.measured is not None:
        multiple = f"{account.measured / weights:.2f}"
        table.add_row("measured peak", megabytes(account.measured), multiple)
    return table


def megabytes(size: int) -> str:
    """With three digits."""
    digits = max(0, 2 - int(math.log10(max(size, 1) / 1e6))) if size >= 1e6 else 2
    return f"{size / 1e6:.{min(digits, 2)}f} MB"


def _is_bf16(prepared: Prepared) -> bool:
    return prepared.config.runtime.precision == "bf16"


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-6, foreach=False)


def _inputs(rows: Sequence[Encoded], prepared: Prepared) -> dict[str, Any]:
    device = prepared.base.model.device
    batch = training_collator(prepared)(rows)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
