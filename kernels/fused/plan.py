"""The plan of a step: its segments as packed rank columns, and the columns of each row tile.

Rows of a step are ordered by segment, and a segment's rank columns are appended to one list, so a
tile of rows needs one contiguous range of columns however many adapters it mixes. Tensors only; no
Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polygraft.kernels.segments import LoraSegment

COLUMN_ALIGNMENT = 16
"""An adapter's columns start at a multiple of this, hence always in the same places of an MMA."""

_CPU = torch.device("cpu")

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PlanCapacity:
    """Largest step a plan can hold, fixed at start: `rows` rows, `columns` packed columns."""

    rows: int
    columns: int
    block_rows: int  # rows of a tile
    segment_columns: int | None = None  # of one segment, what `Scratch` has room for; None: columns

    @property
    def num_tiles(self) -> int:
        """Tiles of the largest step."""
        return -(-self.rows // self.block_rows)


@dataclass(frozen=True, slots=True)
class _HostViews:
    """The tables as numpy arrays: making a view costs as much as filling it."""

    row_columns: Ints
    tile_columns: Ints
    column_rows: Ints
    column_weights: Floats
    tile_starts: Ints  # first row of each tile
    tile_ends: Ints

    @classmethod
    def of(cls, plan: ColumnPlan) -> _HostViews:
        tile_starts = np.arange(plan.capacity.num_tiles, dtype=np.int32) * plan.capacity.block_rows
        rows, tiles, columns, weights = (tensor.numpy() for tensor in plan.tensors)
        return cls(
            rows, tiles, columns, weights, tile_starts, tile_starts + plan.capacity.block_rows
        )


class ColumnPlan:
    """Tables of one step, on one device, in one buffer: one copy brings all of them.

    row_columns: int32 [tiles * block_rows, 2], the columns [lo, hi) of each row, empty for base
    only. tile_columns: int32 [tiles, 2], those of a tile. column_rows: int32 [columns], the pool
    row of a column, -1 for padding. column_weights: float32 [columns]. Addresses never change, so
    a captured graph reads each step's plan. Owned by the engine thread.
    """

    def __init__(
        self, capacity: PlanCapacity, device: torch.device = _CPU, *, pinned: bool = False
    ) -> None:
        self.capacity = capacity
        tiles, columns = capacity.num_tiles, capacity.columns
        sizes = [2 * tiles * capacity.block_rows, 2 * tiles, columns, columns]
        self.buffer = torch.zeros(sum(sizes), dtype=torch.int32, device=device, pin_memory=pinned)
        rows, tile, column, weight = torch.split(self.buffer, sizes)
        self.row_columns = rows.view(-1, 2)
        self.tile_columns = tile.view(-1, 2)
        self.column_rows = column
        self.column_weights = weight.view(torch.float32)
        self.widest_tile = 0  # columns of the tile that has most of them
        self._host = _HostViews.of(self) if self.buffer.device.type == "cpu" else None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tables in the order in which operators take them."""
        return self.row_columns, self.tile_columns, self.column_rows, self.column_weights

    def fill(self, segments: Sequence[LoraSegment]) -> None:
        """Write the plan of these segments. Host tensors only.

        segments: by `start`, disjoint; rows outside of all of them are base only. Raises
        ValueError when they overlap, are not in order, or exceed the capacity.
        """
        assert self._host is not None, "a plan is made on the host and copied to a device"
        live = [s for s in segments if s.end > s.start and s.parts]
        self._host.row_columns.fill(0)
        self._host.tile_columns.fill(0)
        self.widest_tile = 0
        if live:
            starts, ends = self._row_bounds(live)
            bounds = self._write_columns(live)
            lengths = ends - starts
            self._host.row_columns[_ranges(starts, lengths)] = bounds.repeat(lengths, axis=0)
            self._write_tiles(starts, ends, bounds)

    def copy_(self, host: ColumnPlan) -> None:
        """Take over a host plan of the same capacity; asynchronous if that is pinned."""
        if host.capacity != self.capacity:
            raise ValueError(f"a plan of {host.capacity} does not fit one of {self.capacity}")
        self.buffer.copy_(host.buffer, non_blocking=True)
        self.widest_tile = host.widest_tile

    def _row_bounds(self, live: Sequence[LoraSegment]) -> tuple[Ints, Ints]:
        starts = np.array([s.start for s in live], dtype=np.int32)
        ends = np.array([s.end for s in live], dtype=np.int32)
        if starts[0] < 0 or ends[-1] > self.capacity.rows:
            raise ValueError(
                f"segments reach from row {starts[0]} to {ends[-1]}, "
                f"but the plan holds rows 0 to {self.capacity.rows}"
            )
        if (starts[1:] < ends[:-1]).any():
            raise ValueError("segments must be in the order of their rows and must not overlap")
        return starts, ends

    def _write_columns(self, live: Sequence[LoraSegment]) -> Ints:
        """Append every part's columns; return the range [low, high) of each segment."""
        parts = [part for segment in live for part in segment.parts]
        row0 = np.array([part[0] for part in parts], dtype=np.int32)
        ranks = np.array([part[1] for part in parts], dtype=np.int32)
        weights = np.array([part[2] for part in parts], dtype=np.float32)
        padded = (ranks + (COLUMN_ALIGNMENT - 1)) & -COLUMN_ALIGNMENT
        part_ends = np.cumsum(padded, dtype=np.int32)
        total = int(part_ends[-1])
        if total > self.capacity.columns:
            raise ValueError(
                f"{total} rank columns (each adapter's rank rounded up to {COLUMN_ALIGNMENT}) in "
                f"one step, but the plan holds {self.capacity.columns}"
            )
        part_starts = part_ends - padded
        assert self._host is not None
        self._host.column_rows[:total] = -1
        self._host.column_rows[_ranges(part_starts, ranks)] = _ranges(row0, ranks)
        self._host.column_weights[:total] = weights.repeat(padded)
        bounds = np.zeros((len(live), 2), dtype=np.int32)
        bounds[:, 1] = part_ends[np.cumsum([len(segment.parts) for segment in live]) - 1]
        bounds[1:, 0] = bounds[:-1, 1]
        most = self.capacity.segment_columns
        if most is not None and (bounds[:, 1] - bounds[:, 0]).max() > most:
            raise ValueError(
                f"{(bounds[:, 1] - bounds[:, 0]).max()} rank columns (each adapter's rank rounded "
                f"up to {COLUMN_ALIGNMENT}) in one segment, but there is room for {most}"
            )
        return bounds

    def _write_tiles(self, starts: Ints, ends: Ints, bounds: Ints) -> None:
        """Rows and columns have one order: a tile's columns go from its first segment's to its
        last segment's."""
        assert self._host is not None
        first = ends.searchsorted(self._host.tile_starts, side="right")
        last = starts.searchsorted(self._host.tile_ends) - 1
        (tiles,) = (first <= last).nonzero()
        low, high = bounds[first[tiles], 0], bounds[last[tiles], 1]
        self._host.tile_columns[tiles, 0] = low
        self._host.tile_columns[tiles, 1] = high
        self.widest_tile = int((high - low).max())


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """The integers starts[i] .. starts[i] + lengths[i] - 1, for all i, in one array."""
    offsets = starts - (np.cumsum(lengths, dtype=np.int32) - lengths)
    index: Ints = offsets.repeat(lengths)
    index += np.arange(len(index), dtype=np.int32)
    return index


def retile(row_columns: Tensor, tile_columns: Tensor, block_rows: int) -> tuple[Tensor, Tensor]:
    """The first two tables of a plan for tiles of `block_rows` rows, on their device.

    For operators that are given a plan made for other tiles; a server plans for the right ones.
    """
    if len(row_columns) == len(tile_columns) * block_rows:
        return row_columns, tile_columns
    missing = -len(row_columns) % block_rows
    rows = torch.nn.functional.pad(row_columns, (0, 0, 0, missing))
    by_tile = rows.view(-1, block_rows, 2)
    is_base = by_tile[..., 0] == by_tile[..., 1]
    last = by_tile[..., 1].amax(1)
    first = torch.where(is_base, torch.iinfo(torch.int32).max, by_tile[..., 0]).amin(1)
    return rows, torch.stack((first.minimum(last), last), dim=1)
