"""Keys and values of every layer, in cells of one token each, head-major."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from polygraft.kernels.lazy_memory import lazy_zeros
from polygraft.server.engine.probe import LayerFacts


class KVCache:
    """keys[layer]: [kv_heads, cells, head_dim]; values[layer]: [kv_heads, cells, value_dim]."""

    def __init__(
        self,
        layers: Sequence[LayerFacts],
        num_cells: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        spare_cells: int = 0,
    ) -> None:
        """spare_cells: behind the others, for rows of no sequence; nobody reads them."""
        self.num_cells = num_cells
        self._device = device
        total = num_cells + spare_cells
        windows = [layer.window for layer in layers]
        # The widest if every layer has one: what lies behind it is never read again.
        self.window = None if None in windows else max(w for w in windows if w is not None)
        self.keys = [
            lazy_zeros((layer.kv_heads, total, layer.head_dim), dtype=dtype, device=device)
            for layer in layers
        ]
        self.values = [
            lazy_zeros((layer.kv_heads, total, layer.value_dim), dtype=dtype, device=device)
            for layer in layers
        ]

    def write(self, layer: int, cells: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [kv_heads, num_tokens, dim] of one step at `cells` [num_tokens]."""
        self.keys[layer].index_copy_(1, cells, k)
        self.values[layer].index_copy_(1, cells, v)

    def write_layers(self, cells: npt.NDArray[Any], kv: Tensor) -> None:
        """Store keys and values of all layers [num_layers, 2, kv_heads, num_tokens, dim]."""
        index = torch.from_numpy(cells).to(self._device)
        for layer, (k, v) in enumerate(kv):
            self.write(layer, index, k, v)

    def clear(self, cells: npt.NDArray[Any]) -> None:
        """Zero cells that may hold NaN: a masked key still computes 0 * NaN."""
        index = torch.from_numpy(cells).to(self._device)
        for cache in (*self.keys, *self.values):
            cache.index_fill_(1, index, 0)


def bytes_per_cell(layers: Sequence[LayerFacts], dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    elements = sum(layer.kv_heads * (layer.head_dim + layer.value_dim) for layer in layers)
    return elements * dtype.itemsize
