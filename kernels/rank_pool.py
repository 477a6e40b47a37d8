"""The rank-row pool of one linear site: where the low-rank factors of resident adapters live.

Knows tensors and rows, not adapters. A version takes the same consecutive rows in every site; rows
it does not use are zero, so a stale row of an evicted version is never read. B is stored transposed
and unscaled; the scale stands beside it per row and slice, because alpha patterns and rank patterns
change it per module. The layout is that of the GPU kernel: one contiguous block per version.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.kernels.lazy_memory import lazy_zeros


@dataclass(frozen=True, slots=True)
class SiteShape:
    """A linear site: `len(slices)` projections of one input, concatenated."""

    in_features: int
    slices: tuple[int, ...]  # out_features of each projection

    @property
    def out_features(self) -> int:
        """Width of the concatenated output."""
        return sum(self.slices)

    def bounds(self, z: int) -> tuple[int, int]:
        """Output columns [lo, hi) of slice `z`."""
        lo = sum(self.slices[:z])
        return lo, lo + self.slices[z]


class SitePool:
    """Low-rank factors of one site.

    a: [num_rows, Z, in_features], bt: [num_rows, out_features], scale: [num_rows, Z] float32.
    Writers own the rows that they write; readers only read rows of published versions.
    """

    def __init__(
        self, shape: SiteShape, num_rows: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        z = len(shape.slices)
        self.a = lazy_zeros((num_rows, z, shape.in_features), dtype=dtype, device=device)
        self.bt = lazy_zeros((num_rows, shape.out_features), dtype=dtype, device=device)
        self.scale = torch.zeros(num_rows, z, dtype=torch.float32, device=device)
        self._is_written = bytearray(num_rows)

    def clear(self, row0: int, num_rows: int) -> None:
        """Zero the rows [row0, row0 + num_rows). Those that are zero are not touched, so that they
        take no memory."""
        rows = slice(row0, row0 + num_rows)
        if not any(self._is_written[rows]):
            return
        self._is_written[rows] = bytes(num_rows)
        self.a[rows].zero_()
        self.bt[rows].zero_()
        self.scale[rows].zero_()

    def is_written(self, row0: int, num_rows: int) -> bool:
        """Whether any of the rows [row0, row0 + num_rows) may be other than zero."""
        return any(self._is_written[row0 : row0 + num_rows])

    def mark_written(self, row0: int, num_rows: int) -> None:
        """The rows [row0, row0 + num_rows) were written by other means than `write`."""
        self._is_written[row0 : row0 + num_rows] = b"\x01" * num_rows

    def write(self, row0: int, z: int, lora_a: Tensor, lora_b: Tensor, scaling: float) -> None:
        """Store one module. lora_a: [rank, in_features]; lora_b: [slices[z], rank]."""
        rows = slice(row0, row0 + lora_a.shape[0])
        self._is_written[rows] = b"\x01" * lora_a.shape[0]
        lo, hi = self.shape.bounds(z)
        self.a[rows, z].copy_(lora_a)
        self.bt[rows, lo:hi].copy_(lora_b.t())
        self.scale[rows, z] = scaling
