"""Which rows of a step take which rank rows of the pools: what every LoRA path is planned from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Rows [start, end) of the step get the sum of `parts`: (first pool row, rows, weight)."""

    parts: tuple[tuple[int, int, float], ...]
    start: int
    end: int
