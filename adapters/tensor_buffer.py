"""All tensors of a safetensors file at once, as views of one buffer in the serving dtype.

Why: an adapter has hundreds of small tensors, and a few operations for each of them cost far more
than the same operations over all of them. A cold adapter is read while others are served.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polygraft.adapters.safetensors_header import TensorEntry

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorBuffer:
    """Tensors by the names of the header's entries, which `read_header` returned for this file.

    Each view keeps the memory of all of them.
    """

    def __init__(self, path: Path, entries: Sequence[TensorEntry], dtype: torch.dtype) -> None:
        data = np.fromfile(path, dtype=np.uint8)
        self.is_finite = True  # all numbers, as stored and in `dtype`
        self.largest = 0.0  # magnitude of all numbers in `dtype`, if they are finite
        self._views: dict[str, Tensor] = {}
        for stored, group in groupby(entries, key=lambda entry: entry.dtype):
            self._add(data, list(group), _DTYPES[stored], dtype)

    def __getitem__(self, entry: TensorEntry) -> Tensor:
        return self._views[entry.name]

    def _add(
        self,
        data: np.ndarray[tuple[int], np.dtype[np.uint8]],
        entries: Sequence[TensorEntry],
        stored: torch.dtype,
        dtype: torch.dtype,
    ) -> None:
        """Entries of one dtype that follow each other without gaps."""
        begin = entries[0].begin
        part = data[begin : entries[-1].end]
        if begin % stored.itemsize:
            part = part.copy()  # a view must be aligned
        flat = torch.from_numpy(part).view(stored)
        if stored is not dtype:
            self._look_at(flat)
            flat = flat.to(dtype)
        self._look_at(flat)
        for entry in entries:
            start = (entry.begin - begin) // stored.itemsize
            end = (entry.end - begin) // stored.itemsize
            self._views[entry.name] = flat[start:end].view(entry.shape)

    def _look_at(self, flat: Tensor) -> None:
        low, high = flat.aminmax()  # NaN if there is one
        largest = max(-float(low), float(high))
        self.is_finite = self.is_finite and bool(torch.isfinite(low)) and largest < float("inf")
        self.largest = max(self.largest, largest)
