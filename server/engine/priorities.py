"""Which priority class goes first: the highest, but none is starved.

While a class waits it is owed a small part of what the classes above it are given. Once that makes
a chunk it goes first, until it was given it. Ageing would not do: in a lasting overload everything
that waits is old, and priorities would mean nothing.
"""

from __future__ import annotations

from collections.abc import Set

from polygraft.server.engine.messages import PRIORITIES

GUARANTEED = 1 / 16  # of what the classes above are given


class ClassOrder:
    """What each class is owed, in cost. `quantum`: how much makes it go first."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._most = 8 * quantum  # more is not saved up
        self._owed = dict.fromkeys(PRIORITIES, 0.0)
        self._wanting: Set[int] = frozenset()

    def order(self, wanting: Set[int]) -> list[int]:
        """Classes that want to be served in this step, the first to be served first."""
        self._wanting = wanting
        for priority in PRIORITIES:
            if priority not in wanting:
                self._owed[priority] = 0.0
        return sorted(wanting, key=lambda p: (self._owed[p] >= self._quantum, p), reverse=True)

    def charge(self, priority: int, cost: float) -> None:
        """A class was served."""
        self._owed[priority] = max(0.0, self._owed[priority] - cost)
        for lower in self._wanting:
            if lower < priority:
                owed = self._owed[lower] + cost * GUARANTEED
                self._owed[lower] = min(owed, self._most)
