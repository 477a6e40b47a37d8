"""The two sets of kernels behind one interface: Triton's, and their twins in torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from polygraft.kernels.fused import reference as fused_reference
from polygraft.kernels.fused.plan import ColumnPlan
from polygraft.kernels.fused.scratch import CounterArena
from polygraft.kernels.fused.tiles import Bucket, TileConfig
from polygraft.kernels.paged import reference as paged_reference
from polygraft.kernels.paged.plan import PagedPlan
from polygraft.kernels.paged.tiles import LayerShape, PagedConfig
from polygraft.kernels.rank_pool import SitePool
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.device.shapes import SEGMENT_COLUMNS


class DeviceKernels(Protocol):
    """What a step on a device is made of beside the model's own operations."""

    def begin_step(self) -> None:
        """Before the first linear layer of a step, on the stream of its launches."""
        ...

    def lora_linear(
        self,
        site: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pool: SitePool,
        plan: ColumnPlan,
        config: TileConfig,
    ) -> Tensor:
        """The base product and all low-rank updates. x: [rows, in] -> [rows, out]."""
        ...

    def attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: PagedPlan,
        *,
        num_tiles: int,
        config: PagedConfig,
        rule: dict[str, Any],
    ) -> Tensor:
        """Arguments and result of `paged.reference.attention`; rule: its keywords."""
        ...


class ReferenceKernels:
    """The twins. They ask the device for what stands in the tables, so no graph holds them."""

    def begin_step(self) -> None:
        """See DeviceKernels."""

    def lora_linear(
        self,
        site: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pool: SitePool,
        plan: ColumnPlan,
        config: TileConfig,
    ) -> Tensor:
        """See DeviceKernels."""
        slices = pool.shape.slices
        pools = pool.a, pool.bt, pool.scale
        return fused_reference.lora_linear(x, weight, bias, *pools, *plan.tensors, slices)

    def attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: PagedPlan,
        *,
        num_tiles: int,
        config: PagedConfig,
        rule: dict[str, Any],
    ) -> Tensor:
        """See DeviceKernels."""
        return paged_reference.attention(q, keys, values, plan, num_tiles=num_tiles, **rule)


class TritonKernels:
    """Those for a GPU, with the memory that they write to beside their results."""

    def __init__(
        self,
        linears: Iterable[tuple[Bucket, TileConfig]],
        attention: Iterable[tuple[int, PagedConfig, LayerShape]],
        num_sites: int,
        device: torch.device,
    ) -> None:
        """linears, attention: all that will ever be launched; of attention with the rows."""
        # Why here: a process that serves from a CPU must not need Triton.
        from polygraft.kernels.fused import launch as fused
        from polygraft.kernels.paged import launch as paged

        self._fused, self._paged = fused, paged
        launches = list(linears)
        scratch = fused.Scratch.for_launches(launches, SEGMENT_COLUMNS, device)
        tiles = max(config.num_row_tiles(bucket.rows) for bucket, config in launches)
        self._counters = CounterArena(num_sites, tiles, device)
        self._linear_scratch = [scratch.with_ready(self._counters.take()) for _ in range(num_sites)]
        scratches = [
            paged.PagedScratch.allocate(rows, config, layer, device)
            for rows, config, layer in attention
        ]
        self._paged_scratch = max(scratches, key=lambda s: s.parts.numel(), default=None)

    def begin_step(self) -> None:
        """See DeviceKernels."""
        self._counters.zero_()

    def lora_linear(
        self,
        site: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pool: SitePool,
        plan: ColumnPlan,
        config: TileConfig,
    ) -> Tensor:
        """See DeviceKernels."""
        return self._fused.lora_linear(
            x, weight, bias, pool.a, pool.bt, pool.scale, *plan.tensors, pool.shape.slices,
            config=config, scratch=self._linear_scratch[site],
        )  # fmt: skip

    def attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: PagedPlan,
        *,
        num_tiles: int,
        config: PagedConfig,
        rule: dict[str, Any],
    ) -> Tensor:
        """See DeviceKernels."""
        return self._paged.attention(
            q, keys, values, plan,
            num_tiles=num_tiles, config=config, scratch=self._paged_scratch, **rule,
        )  # fmt: skip


def make_kernels(
    path: DevicePath,
    linears: Iterable[tuple[Bucket, TileConfig]],
    attention: Iterable[tuple[int, PagedConfig, LayerShape]],
    num_sites: int,
) -> DeviceKernels:
    """Those that the path names."""
    if path.kernels == "reference":
        return ReferenceKernels()
    return TritonKernels(linears, attention, num_sites, path.device)
