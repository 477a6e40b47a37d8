"""Launches our kernel as a server does: tiles by the bucket, tables and scratch made once.

All that the GPU check knows of `polygraft.kernels.fused` stands here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polygraft.kernels.fused import launch
from polygraft.kernels.fused.launch import Scratch
from polygraft.kernels.fused.operator import target_of
from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity
from polygraft.kernels.fused.tiles import Bucket, TileConfig, choice
from polygraft.kernels.segments import LoraSegment

INTERPRETED = TileConfig(16, 32, 32)


class FusedSite:
    """One linear site for steps of `rows` rows; `fill` gives it the segments of a step."""

    def __init__(
        self, rows: int, inputs: int, slices: Sequence[int], columns: int, device: torch.device
    ) -> None:
        """columns: packed columns of a step at most."""
        self.slices = tuple(slices)
        self.config = tiles_of(rows, inputs, self.slices, device)
        capacity = PlanCapacity(rows, max(columns, 1), self.config.block_m)
        self._host = ColumnPlan(capacity, pinned=device.type == "cuda")
        self.plan = ColumnPlan(capacity, device)
        elements = self.config.split_k * rows * sum(self.slices)
        tiles = self.config.num_tiles(rows, self.slices)
        self._scratch = Scratch.allocate(elements, tiles, device)

    def fill(self, segments: Sequence[LoraSegment]) -> None:
        """The plan of a step; captured graphs read the new one."""
        self._host.fill(segments)
        self.plan.copy_(self._host)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        bt: Tensor,
        scale: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """One launch."""
        return launch.lora_linear(
            x, weight, bias, a, bt, scale, *self.plan.tensors, self.slices,
            config=self.config, scratch=self._scratch, out=out,
        )  # fmt: skip


def tiles_of(rows: int, inputs: int, slices: tuple[int, ...], device: torch.device) -> TileConfig:
    """What a server takes for these rows on this GPU."""
    if device.type == "cpu":
        return INTERPRETED
    return choice(Bucket.forward(rows, inputs, slices), target_of(device))
