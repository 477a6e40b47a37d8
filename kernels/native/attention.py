"""Causal attention over the paged cache, for any mix of decodes and prefill chunks."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from polygraft.kernels.native.library import TYPES, require_native_kernels
from polygraft.kernels.segments import SequenceRows

TILE_ROWS = 32  # query rows (tokens x query heads per key head) that share one reading of the keys


class _Plan(ctypes.Structure):
    _fields_ = (
        ("num_tiles", ctypes.c_int32),
        ("table_width", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("tiles", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("cells", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("scaling", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("softcap", ctypes.c_float),
        ("sinks", ctypes.c_void_p),
    )


class NativeAttentionPlan:
    """Which rows read which blocks; built once per step, read by every layer.

    `group` is the number of query heads per key head (the largest of the model's layers).
    """

    def __init__(self, sequences: Sequence[SequenceRows], *, block_size: int, group: int) -> None:
        width = max((len(sequence.blocks) for sequence in sequences), default=0)
        self._tables = np.zeros((max(1, len(sequences)), max(1, width)), dtype=np.int32)
        tiles: list[tuple[int, int, int, int]] = []
        step = max(1, TILE_ROWS // group)
        for index, rows in enumerate(sequences):
            self._tables[index, : len(rows.blocks)] = rows.blocks
            seen = rows.length - rows.count + 1  # keys that the first row sees
            tiles += [
                (index, rows.start + offset, min(step, rows.count - offset), seen + offset)
                for offset in range(0, rows.count, step)
            ]
        self._tiles = np.asarray(tiles, dtype=np.int32).reshape(-1, 4)
        self._plan = _Plan(
            num_tiles=len(tiles),
            table_width=self._tables.shape[1],
            block_size=block_size,
            tiles=self._tiles.ctypes.data,
            tables=self._tables.ctypes.data,
        )
        self.address = ctypes.addressof(self._plan)


class NativeAttention:
    """Attention of one layer over its cache.

    keys: [kv_heads, cells, dim]; values: [kv_heads, cells, value_dim]. window: key j is seen from
    position i iff j > i - window. softcap: scores become softcap * tanh(scores / softcap).
    sinks: [heads] float32 logits that take part in the softmax and carry no value.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        *,
        heads: int,
        scaling: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        kv_heads, cells, dim = keys.shape
        self._held = (keys, values, sinks)  # the structure has only their addresses
        self._type = TYPES[keys.dtype]
        self._heads = heads
        self._value_dim = values.shape[2]
        self._layer = _Layer(
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            value_dim=values.shape[2],
            cells=cells,
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            scaling=scaling,
            window=window or 0,
            softcap=softcap or 0.0,
            sinks=None if sinks is None else sinks.data_ptr(),
        )
        self._address = ctypes.addressof(self._layer)

    def __call__(self, plan: NativeAttentionPlan, q: Tensor) -> Tensor:
        """q: [rows, >= heads * dim], the queries first in each row -> [rows, heads * value_dim]."""
        out = q.new_empty(q.shape[0], self._heads * self._value_dim)
        require_native_kernels().attention(
            self._type, self._address, plan.address, q.data_ptr(), q.stride(0), out.data_ptr()
        )
        return out
