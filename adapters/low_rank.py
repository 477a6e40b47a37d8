"""The low-rank update of one linear layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The low-rank update of one linear module: y += scaling * B (A x)."""

    lora_a: Tensor  # [rank, in_features], serving dtype
    lora_b: Tensor  # [out_features, rank], serving dtype
    scaling: float

    @property
    def rank(self) -> int:
        """The number of rank columns, as stored in the file."""
        return int(self.lora_a.shape[0])

    @property
    def has_effect(self) -> bool:
        """Whether it can change any output."""
        return self.scaling != 0 and bool(self.lora_a.any()) and bool(self.lora_b.any())
