"""Requests that need several versions at once, and whose turn it is to get all of them.

Why: two requests for two versions each, on a device with room for two, could else each keep one
and take the other from the other for ever. So one of them at a time, the one that has waited
longest, keeps what it has until it computes; only a load that has waited longer still may take it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection

from polygraft.adapters.resident import Entry


class Groups:
    """Sets of digests, and since when requests wait for each. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[frozenset[str], deque[float]] = {}

    def wait(self, digests: Collection[str]) -> None:
        """A request begins to wait for these versions."""
        if len(digests) > 1:
            self._waiting.setdefault(frozenset(digests), deque()).append(self._clock())

    def hold(self, digests: Collection[str]) -> None:
        """A request has got these versions: the one that has waited longest for them."""
        if len(digests) > 1:
            self._stop(frozenset(digests), 0)

    def give_up(self, digests: Collection[str]) -> None:
        """A request ended without these versions."""
        if len(digests) > 1:
            self._stop(frozenset(digests), -1)

    def since(self, load: Entry) -> float:
        """Since when a load waits: a version of the set whose turn it is waits as long as the set,
        however often it was evicted and asked for again."""
        first, since = self._first()
        return min(load.wanted_at, since) if load.digest in first else load.wanted_at

    def place_in_line(self, load: Entry) -> tuple[float, bool]:
        """The smaller, the sooner its turn; of equals that of the set, as nobody takes from it."""
        return self.since(load), load.digest not in self._first()[0]

    def kept_from(self, load: Entry) -> frozenset[str]:
        """The versions that stay although a load needs room."""
        first, since = self._first()
        return first if since <= self.since(load) else frozenset()

    def _first(self) -> tuple[frozenset[str], float]:
        """The set that has been waited for longest, and since when."""
        if not self._waiting:
            return frozenset(), math.inf
        first = min(self._waiting, key=lambda key: self._waiting[key][0])
        return first, self._waiting[first][0]

    def _stop(self, key: frozenset[str], index: int) -> None:
        times = self._waiting[key]
        del times[index]
        if not times:
            del self._waiting[key]
