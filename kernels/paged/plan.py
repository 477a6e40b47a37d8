"""The plan of a step: which rows attend to which blocks, in tiles of rows of one sequence.

Decodes and prefill chunks are the same thing here: some rows at the end of a sequence. Tensors
only; no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from polygraft.kernels.segments import SequenceRows

TILE_FIELDS = 4  # first entry of its blocks in `blocks`, first row, number of rows, first position

_CPU = torch.device("cpu")

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PagedCapacity:
    """Largest step a plan can hold, fixed at start: tiles of up to `tile_rows` rows, and entries of
    block tables of all sequences together."""

    tiles: int
    blocks: int
    block_size: int  # positions of a block
    tile_rows: int


class PagedPlan:
    """Tables of one step, on one device, in one buffer: one copy brings what is used of it.

    tiles: int32 [tiles, TILE_FIELDS]; a tile of no rows is not computed, one whose first position
    is -1 is a row of padding, whose output is zero. blocks: int32 [blocks], the blocks of one
    sequence after the other. Addresses never change, so a captured graph reads each step's plan.
    """

    def __init__(
        self, capacity: PagedCapacity, device: torch.device = _CPU, *, pinned: bool = False
    ) -> None:
        self.capacity = capacity
        size = capacity.tiles * TILE_FIELDS
        self.buffer = torch.zeros(
            size + capacity.blocks, dtype=torch.int32, device=device, pin_memory=pinned
        )
        self.tiles = self.buffer[:size].view(-1, TILE_FIELDS)
        self.blocks = self.buffer[size:]
        self.num_tiles = 0
        self._num_used = 0  # of the buffer
        is_host = self.buffer.device.type == "cpu"
        self._host: tuple[Ints, Ints] | None = (
            (self.tiles.numpy(), self.blocks.numpy()) if is_host else None
        )

    def fill(self, rows: Sequence[SequenceRows], *, padding: range = range(0)) -> None:
        """Write the plan of these rows, and of rows of padding. Host tensors only.

        Raises ValueError when they exceed the capacity.
        """
        assert self._host is not None, "a plan is made on the host and copied to a device"
        tiles, blocks = self._host
        size = self.capacity.tile_rows
        counts = np.array([r.count for r in rows], dtype=np.int32)
        tables = [r.blocks[: -(-r.length // self.capacity.block_size)] for r in rows]
        ends = np.cumsum([len(table) for table in tables], dtype=np.int64)
        per_sequence = -(-counts // size)
        num_tiles = int(per_sequence.sum()) + len(padding)
        num_blocks = int(ends[-1]) if len(ends) else 0
        self._check_room(num_tiles, num_blocks)
        if rows:
            np.concatenate(tables, out=blocks[:num_blocks])
            first_entry = ends - [len(table) for table in tables]
            starts = np.array([r.start for r in rows], dtype=np.int32)
            positions = np.array([r.length - r.count for r in rows], dtype=np.int32)
            owner = np.repeat(np.arange(len(rows)), per_sequence)
            before = np.cumsum(per_sequence) - per_sequence  # tiles of the sequences before
            skipped = (np.arange(len(owner)) - before[owner]) * size
            own = tiles[: len(owner)]
            own[:, 0] = first_entry[owner]
            own[:, 1] = starts[owner] + skipped
            own[:, 2] = np.minimum(counts[owner] - skipped, size)
            own[:, 3] = positions[owner] + skipped
        tiles[num_tiles - len(padding) : num_tiles] = [(0, row, 1, -1) for row in padding] or 0
        tiles[num_tiles:, 2] = 0
        self.num_tiles = num_tiles
        self._num_used = tiles.size + num_blocks

    def copy_(self, host: PagedPlan) -> None:
        """Take over a host plan of the same capacity; asynchronous if that is pinned."""
        if host.capacity != self.capacity:
            raise ValueError(f"a plan of {host.capacity} does not fit one of {self.capacity}")
        used = host._num_used
        self.buffer[:used].copy_(host.buffer[:used], non_blocking=True)
        self.num_tiles = host.num_tiles
        self._num_used = used

    def _check_room(self, num_tiles: int, num_blocks: int) -> None:
        capacity = self.capacity
        if num_tiles > capacity.tiles or num_blocks > capacity.blocks:
            raise ValueError(
                f"{num_tiles} tiles and {num_blocks} blocks in one step, but the plan holds "
                f"{capacity.tiles} and {capacity.blocks}"
            )
