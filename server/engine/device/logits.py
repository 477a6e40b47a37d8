"""The outcome of a step that stays on the device, except for tokens and what is asked for."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from polygraft.server.engine.step_logits import Rows


class DeviceLogits:
    """Implements StepLogits. Making it waits for the step: one copy brings tokens and flags."""

    def __init__(
        self, tensor: Tensor, tokens: Tensor, finite: Tensor, host_rows: Collection[int]
    ) -> None:
        """tensor: [num_logits, vocab_size] float32; tokens, finite: [num_logits]; host_rows: those
        whose token is still to be chosen."""
        self.tensor = tensor
        both = torch.stack((tokens, finite.to(tokens.dtype))).cpu()
        self._tokens: list[int] = both[0].tolist()
        self._finite = [bool(flag) for flag in both[1].tolist()]
        self._host_rows = host_rows

    def finite(self) -> list[bool]:
        """See StepLogits."""
        return self._finite

    def rows(self, first: int, end: int) -> Rows:
        """A copy."""
        rows: Rows = self.tensor[first:end].cpu().numpy()
        return rows

    def token(self, row: int) -> int | None:
        """See StepLogits."""
        return None if row in self._host_rows else self._tokens[row]
