"""Whose place a load gets when the device is full of versions that somebody wants.

A version that is wanted but not computed with gives its place to a load that has waited for
`patience` seconds, once it had a turn of that length itself. If all are computed with, the one
that has been there longest is *drained*: nobody begins with it any more, those who hold it end.
So whatever number of versions is wanted at a time, each of them gets its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polygraft.adapters.resident import Entry


class Rotation:
    """Chooses what is freed for overdue loads. `clock` gives monotonic seconds."""

    def __init__(self, patience: float, clock: Callable[[], float]) -> None:
        self.draining: Entry | None = None
        self._patience = patience
        self._clock = clock
        self.look_at: float | None = None  # when `choose` may answer otherwise all by itself

    def start_waiting(self, load: Entry) -> None:
        """A load was asked for."""
        load.wanted_at = self._clock()

    def start_turn(self, entry: Entry) -> None:
        """A version came to the device."""
        entry.placed_at = self._clock()

    def is_overdue(self, load: Entry) -> bool:
        """Whether a load has waited long enough for others to make room."""
        return self._clock() >= load.wanted_at + self._patience

    def seconds_to_look(self) -> float | None:
        """In how many seconds that is; None if there is no such time."""
        return None if self.look_at is None else max(0.0, self.look_at - self._clock())

    def choose(self, load: Entry, entries: Iterable[Entry]) -> Entry | None:
        """The version to free for a load at once; None: not yet. May begin to drain one."""
        if not self.is_overdue(load):
            self.look_at = load.wanted_at + self._patience
            return None
        now = self._clock()
        there = [e for e in entries if e.on_device and not e.pinned and not e.waiters]
        had_turn = [e for e in there if now >= e.placed_at + self._patience]
        others = [e.placed_at for e in there if now < e.placed_at + self._patience]
        self.look_at = min(others) + self._patience if others else None
        unused = [e for e in had_turn if not e.holders]
        if unused:
            return min(unused, key=lambda e: e.placed_at)
        if had_turn and self.draining is None:
            self.draining = min(had_turn, key=lambda e: e.placed_at)
        return None
