"""Device memory that launches of the fused linear need beside their arguments.

Its addresses never change, so captured graphs may use it. It belongs to one stream. No Triton.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polygraft.kernels.fused.plan import COLUMN_ALIGNMENT
from polygraft.kernels.fused.tiles import Bucket, TileConfig


@dataclass(frozen=True, slots=True)
class Scratch:
    """What one launch may write; `low` and `ready` only matter to variants with producers.

    planes: float32, at least split_k * M * N, if split_k > 1. arrivals: int32 zeros, at least one
    per tile; each launch leaves them zero. low: float32, at least shrink_split * M * Z *
    low_columns. low_columns: most packed columns of one row, that is of one segment; a multiple of
    16. ready: int32, at least one per row tile, ZERO AT EACH LAUNCH of the producers variant (see
    CounterArena); without it the launch brings its own.
    """

    planes: Tensor
    arrivals: Tensor
    low: Tensor | None = None
    low_columns: int = 0
    ready: Tensor | None = None

    @classmethod
    def allocate(cls, num_elements: int, num_tiles: int, device: torch.device) -> Scratch:
        """For the inline variant. num_elements: the largest split_k * M * N to be launched."""
        planes = torch.empty(num_elements, dtype=torch.float32, device=device)
        return cls(planes, torch.zeros(num_tiles, dtype=torch.int32, device=device))

    @classmethod
    def for_launches(
        cls,
        launches: Iterable[tuple[Bucket, TileConfig]],
        segment_columns: int,
        device: torch.device,
    ) -> Scratch:
        """One that any of these launches can use, after each other on one stream.

        segment_columns: most packed columns of one segment, each adapter's rank rounded up to 16.
        """
        columns = -(-max(segment_columns, 1) // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT
        planes, tiles, low = 1, 1, 1
        for bucket, config in launches:
            tiles = max(tiles, config.num_tiles(bucket.rows, bucket.outputs))
            if config.split_k > 1:
                planes = max(planes, config.split_k * bucket.rows * sum(bucket.outputs))
            if config.variant in ("producers", "pair", "hybrid"):
                slices = len(bucket.outputs) * len(bucket.inputs)
                low = max(low, config.shrink_split * bucket.rows * slices * columns)
        return replace(
            cls.allocate(planes, tiles, device),
            low=torch.empty(low, dtype=torch.float32, device=device),
            low_columns=columns,
        )

    def with_ready(self, ready: Tensor) -> Scratch:
        """The same memory with the counters of one launch."""
        return replace(self, ready=ready)


class CounterArena:
    """The counters of all launches of a step, zeroed together by one memset at its start.

    Why not reset by the kernels: that costs a fence in every program, and a launch that was broken
    off would poison the next one.
    """

    def __init__(self, num_launches: int, num_row_tiles: int, device: torch.device) -> None:
        """For as many launches of a step, each of up to `num_row_tiles` row tiles."""
        # Why 4: addresses that are all aligned alike let one compiled kernel serve all launches.
        size = -(-num_row_tiles // 4) * 4
        self._counters = torch.zeros(num_launches, size, dtype=torch.int32, device=device)
        self._taken = 0

    def take(self) -> Tensor:
        """Counters for one launch of a step. Raises ValueError when all are taken."""
        if self._taken == len(self._counters):
            raise ValueError(f"a step was to have {self._taken} launches with counters, not more")
        self._taken += 1
        return self._counters[self._taken - 1]

    def zero_(self) -> None:
        """At the start of each step, on the stream of its launches."""
        self._counters.zero_()
