"""Which rows of a step take which rank rows and read which blocks: what every path plans from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Rows [start, end) of the step get the sum of `parts`: (first pool row, rows, weight)."""

    parts: tuple[tuple[int, int, float], ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows [start, start + count) of the step: the last `count` of `length` positions.

    blocks: the sequence's block numbers, in order of position.
    """

    start: int
    count: int
    length: int
    blocks: npt.NDArray[np.int32]
