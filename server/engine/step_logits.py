"""What a step computed, as it is looked at afterwards."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.float32]  # [count, vocab_size] logits


class StepLogits(Protocol):
    """The logits of the rows in `ForwardBatch.logit_rows`, wherever they are."""

    @property
    def tensor(self) -> Tensor:
        """[num_logits, vocab_size] float32."""
        ...

    def finite(self) -> list[bool]:
        """By row, whether it has neither NaN nor Inf."""
        ...

    def rows(self, first: int, end: int) -> Rows:
        """The rows [first, end) on the host."""
        ...

    def token(self, row: int) -> int | None:
        """What was chosen for this row already; None: it is to be chosen from `rows`."""
        ...


class HostLogits:
    """Logits on the host: every token is chosen there."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._rows: Rows = tensor.numpy()

    def finite(self) -> list[bool]:
        """A sum is finite iff every term is, short of overflow, which is as bad."""
        found: list[bool] = torch.isfinite(self.tensor.sum(-1)).tolist()
        return found

    def rows(self, first: int, end: int) -> Rows:
        """A view."""
        return self._rows[first:end]

    def token(self, row: int) -> None:
        """None was."""


def step_logits(found: Tensor | StepLogits) -> StepLogits:
    """What a runner returned, in one form."""
    return HostLogits(found) if isinstance(found, Tensor) else found
