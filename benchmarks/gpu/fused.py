"""Launches our kernel as a server does: tiles by the bucket, tables and scratch made once.

All that the GPU check knows of `polygraft.kernels.fused` stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from polygraft.kernels.fused import launch
from polygraft.kernels.fused.dispatch import Dispatcher, dispatcher_of
from polygraft.kernels.fused.launch import Scratch
from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity
from polygraft.kernels.fused.tiles import Bucket, TileConfig, Variant
from polygraft.kernels.segments import LoraSegment

INTERPRETED = TileConfig(16, 32, 32)
COMPUTING: tuple[Variant, ...] = ("inline", "producers", "pair", "hybrid")


class FusedSite:
    """One linear site for steps of `rows` rows; `fill` gives it the segments of a step."""

    def __init__(
        self,
        rows: int,
        inputs: int,
        slices: Sequence[int],
        columns: int,
        device: torch.device,
        variant: Variant | None = None,
    ) -> None:
        """columns: packed columns of a step at most. variant: instead of the dispatcher's."""
        self.slices, self._variant = tuple(slices), variant
        self._bucket = Bucket.forward(rows, inputs, self.slices)
        block_rows = _block_rows(rows, device)
        capacity = PlanCapacity(rows, max(columns, 1), block_rows)
        self._host = ColumnPlan(capacity, pinned=device.type == "cuda")
        self.plan = ColumnPlan(capacity, device)
        self.config: TileConfig | None = None  # known with the first step
        self._scratch: Scratch | None = None

    def fill(self, segments: Sequence[LoraSegment]) -> None:
        """The plan of a step; captured graphs read the new one. The first one decides what computes
        all of them, as the columns of its widest tile are part of the bucket."""
        self._host.fill(segments)
        self.plan.copy_(self._host)
        if self.config is None:
            device = self.plan.buffer.device
            columns = self._host.widest_tile
            self.config = _config(self._bucket, columns, device, self._variant)
            work = [(self._bucket, self.config)]
            self._scratch = Scratch.for_launches(work, self.plan.capacity.columns, device)

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
        """The linear, by the kernel that a server takes for such a step."""
        assert self.config is not None, "fill comes first"
        return launch.lora_linear(
            x, weight, bias, a, bt, scale, *self.plan.tensors, self.slices,
            config=self.config, scratch=self._scratch, out=out,
        )  # fmt: skip


def _block_rows(rows: int, device: torch.device) -> int:
    return INTERPRETED.block_m if device.type == "cpu" else dispatcher_of(device).block_rows(rows)


def _config(
    bucket: Bucket, columns: int, device: torch.device, variant: Variant | None
) -> TileConfig:
    if device.type == "cpu":
        return replace(INTERPRETED, variant=variant or INTERPRETED.variant)
    if variant is None:
        return dispatcher_of(device).choice(bucket, columns)
    return Dispatcher.for_device(device, variant).choice(bucket, columns)
