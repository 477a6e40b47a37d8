"""The tables of a step: filled on the host, copied to addresses on the device that never change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity
from polygraft.kernels.paged.plan import PagedCapacity, PagedPlan
from polygraft.kernels.segments import LoraSegment, SequenceRows
from polygraft.server.engine.device.shapes import AttentionTiles, StepSizes

Ints = npt.NDArray[np.int64]
_TOKENS, _POSITIONS, _CELLS, _LOGITS = range(4)


class StepTables:
    """What a step reads besides weights, pools and cache. Engine thread only.

    `fill` writes the host's side, `upload` copies it. The host waits for the results of a step
    before it fills the next one, so no copy is under way then.
    """

    def __init__(
        self,
        sizes: StepSizes,
        attention: AttentionTiles,
        *,
        spare_cell: int,
        device: torch.device,
    ) -> None:
        """spare_cell: where rows of padding leave their keys and values."""
        pinned = device.type == "cuda"
        self._spare_cell = spare_cell
        self._columns_wanted = sizes
        self._device = device
        self._host = torch.zeros((4, sizes.rows), dtype=torch.int64, pin_memory=pinned)
        self._there = torch.zeros((4, sizes.rows), dtype=torch.int64, device=device)
        self._numpy: Ints = self._host.numpy()
        tiles = {True: sizes.graph_rows[-1], False: sizes.rows}
        capacities = {
            is_decode: PagedCapacity(
                count, sizes.blocks, sizes.block_size, attention.rows(is_decode=is_decode)
            )
            for is_decode, count in tiles.items()
        }
        self._paged = {
            is_decode: (PagedPlan(capacity, pinned=pinned), PagedPlan(capacity, device))
            for is_decode, capacity in capacities.items()
        }
        self._columns: dict[int, tuple[ColumnPlan, ColumnPlan]] = {}
        self._to_copy: list[tuple[PagedPlan, PagedPlan] | tuple[ColumnPlan, ColumnPlan]] = []

    @property
    def token_ids(self) -> Tensor:
        """[rows] int64 on the device; 0 for rows of no token."""
        return self._there[_TOKENS]

    @property
    def positions(self) -> Tensor:
        """[rows] int64."""
        return self._there[_POSITIONS]

    @property
    def cells(self) -> Tensor:
        """[rows] int64."""
        return self._there[_CELLS]

    @property
    def logit_rows(self) -> Tensor:
        """[rows] int64."""
        return self._there[_LOGITS]

    def paged(self, *, is_decode: bool) -> PagedPlan:
        """The plan of attention on the device."""
        return self._paged[is_decode][1]

    def columns(self, block_rows: int) -> ColumnPlan:
        """The plan of low-rank updates on the device, for tiles of so many rows."""
        return self._column_plans(block_rows)[1]

    def fill(
        self,
        token_ids: Ints,
        positions: Ints,
        cells: Ints,
        logit_rows: Sequence[int],
        sequences: Sequence[SequenceRows],
        *,
        padded_to: int | None,
    ) -> None:
        """padded_to: rows of a step that is replayed; None: it is launched as it is."""
        count = len(token_ids)
        end = padded_to or count
        self._numpy[_TOKENS:_CELLS, count:end] = 0
        self._numpy[_CELLS, count:end] = self._spare_cell
        for row, values in ((_TOKENS, token_ids), (_POSITIONS, positions), (_CELLS, cells)):
            self._numpy[row, :count] = values
        self._numpy[_LOGITS, : len(logit_rows)] = logit_rows
        plans = self._paged[padded_to is not None]
        plans[0].fill(sequences, padding=range(count, end))
        self._to_copy = [plans]

    def fill_unowned(self, rows: int) -> None:
        """So many rows that belong to no sequence, to be launched."""
        self._numpy[:, :rows] = 0
        self._numpy[_CELLS, :rows] = self._spare_cell
        plans = self._paged[False]
        plans[0].fill([], padding=range(rows))
        self._to_copy = [plans]

    def fill_columns(self, segments: Sequence[LoraSegment], block_rows: int) -> int:
        """The low-rank updates of the step, for tiles of so many rows; returns the columns of the
        widest tile."""
        plans = self._column_plans(block_rows)
        plans[0].fill(segments)
        self._to_copy.append(plans)
        return plans[0].widest_tile

    @torch.inference_mode()
    def upload(self) -> None:
        """Copy what was filled, without waiting for it."""
        self._there.copy_(self._host, non_blocking=True)
        for host, there in self._to_copy:
            there.copy_(host)  # type: ignore[arg-type]
        self._to_copy = []

    def _column_plans(self, block_rows: int) -> tuple[ColumnPlan, ColumnPlan]:
        if block_rows not in self._columns:
            sizes = self._columns_wanted
            capacity = PlanCapacity(sizes.rows, sizes.columns, block_rows)
            pinned = self._device.type == "cuda"
            self._columns[block_rows] = (
                ColumnPlan(capacity, pinned=pinned),
                ColumnPlan(capacity, self._device),
            )
        return self._columns[block_rows]
