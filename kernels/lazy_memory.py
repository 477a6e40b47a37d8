"""Large zeroed tensors whose memory is taken from the system only where it is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def lazy_zeros(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.zeros`, which on a CPU writes every page at once; numpy's zeros come from
    `calloc`, whose pages cost nothing until they are written."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, dtype=_UNSIGNED[dtype.itemsize])).view(dtype)
