"""When sequences have to be looked at because time has passed."""

from __future__ import annotations

import heapq
from collections.abc import Container

from polygraft.server.engine.sequence import Sequence


class Timers:
    """Ids of sequences by time, on the monotonic clock.

    A sequence that ends early takes its timers along at the next `prune`.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def add(self, sequence: Sequence) -> None:
        """Look at the sequence when its time limit or its deadline passes."""
        for at in (sequence.expires_at, sequence.request.deadline):
            if at is not None:
                heapq.heappush(self._heap, (at, sequence.id))

    def due(self, now: float) -> list[str]:
        """Take out the ids whose time has come."""
        ids = []
        while self._heap and self._heap[0][0] <= now:
            ids.append(heapq.heappop(self._heap)[1])
        return ids

    def __len__(self) -> int:
        return len(self._heap)

    def prune(self, live: Container[str]) -> None:
        """Forget timers of sequences that are no more. Costs as much as there are timers."""
        self._heap = [entry for entry in self._heap if entry[1] in live]
        heapq.heapify(self._heap)
