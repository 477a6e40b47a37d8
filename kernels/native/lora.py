"""Low-rank updates of a mixed batch, read straight from the rank-row pools."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from polygraft.kernels.native.library import TYPES, require_native_kernels
from polygraft.kernels.rank_pool import SitePool
from polygraft.kernels.segments import LoraSegment

TILE_ROWS = 8  # LORA_TILE of the source
MAX_RANK_ROWS = 1024  # LORA_MAX_ROWS of the source

_PART = np.dtype([("row0", np.int32), ("rows", np.int32), ("weight", np.float32)])


class _Plan(ctypes.Structure):
    _fields_ = (
        ("num_tiles", ctypes.c_int32),
        ("tiles", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
    )


class _Site(ctypes.Structure):
    _fields_ = (
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("slices", ctypes.c_int32),
        ("bounds", ctypes.c_void_p),
        ("a", ctypes.c_void_p),
        ("bt", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
    )


class NativeLoraPlan:
    """Which rows take which pool rows; built once per step, read by every site."""

    def __init__(self, segments: Sequence[LoraSegment]) -> None:
        parts: list[tuple[int, int, float]] = []
        tiles: list[tuple[int, int, int, int]] = []
        for segment in segments:
            assert sum(count for _, count, _ in segment.parts) <= MAX_RANK_ROWS
            begin = len(parts)
            parts += segment.parts
            tiles += [
                (row, min(TILE_ROWS, segment.end - row), begin, len(parts))
                for row in range(segment.start, segment.end, TILE_ROWS)
            ]
        self.is_empty = not tiles
        self._parts = np.asarray(parts, dtype=_PART)
        self._tiles = np.asarray(tiles, dtype=np.int32).reshape(-1, 4)
        self._plan = _Plan(
            num_tiles=len(tiles), tiles=self._tiles.ctypes.data, parts=self._parts.ctypes.data
        )
        self.address = ctypes.addressof(self._plan)


class NativeLora:
    """The update of one site from its pool."""

    def __init__(self, pool: SitePool) -> None:
        slices = pool.shape.slices
        self._pool = pool  # the structure has only addresses
        self._type = TYPES[pool.a.dtype]
        self._bounds = np.cumsum([0, *slices]).astype(np.int32)
        self._site = _Site(
            inputs=pool.shape.in_features,
            outputs=pool.shape.out_features,
            slices=len(slices),
            bounds=self._bounds.ctypes.data,
            a=pool.a.data_ptr(),
            bt=pool.bt.data_ptr(),
            scale=pool.scale.data_ptr(),
        )
        self._address = ctypes.addressof(self._site)

    def add_(self, plan: NativeLoraPlan, x: Tensor, y: Tensor) -> None:
        """Add in place. x: [rows, in]; y: [rows, out], both contiguous."""
        require_native_kernels().lora(
            self._type, self._address, plan.address, x.data_ptr(), y.data_ptr()
        )
