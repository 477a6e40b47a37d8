"""Whose place a load gets when the device is full of versions that somebody wants.

A version that is wanted but not computed with gives its place to a load that has waited for
`patience` seconds, once it had a turn of that length itself. If all are computed with, the one
that has been there longest is *drained*: nobody begins with it any more, those who hold it end.
So whatever number of versions is wanted at a time, each of them gets its turn. Those that one
request needs together are kept until it has all of them (`groups.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from polygraft.adapters.resident import Entry


class Rotation:
    """Chooses what is freed for overdue loads. `clock` gives monotonic seconds."""

    def __init__(self, patience: float, clock: Callable[[], float]) -> None:
        self.draining: Entry | None = None
        self._patience = patience
        self.clock = clock
        self.look_at: float | None = None  # when `choose` may answer otherwise all by itself

    def start_waiting(self, load: Entry) -> None:
        """A load was asked for."""
        load.wanted_at = self.clock()

    def start_turn(self, entry: Entry) -> None:
        """A version came to the device."""
        entry.placed_at = self.clock()

    def is_overdue(self, since: float) -> bool:
        """Whether a load that waits since then has waited long enough for others to make room."""
        return self.clock() >= since + self._patience

    @property
    def is_time_to_look(self) -> bool:
        """Whether `choose` may answer otherwise now."""
        return self.look_at is not None and self.clock() >= self.look_at

    def seconds_to_look(self) -> float | None:
        """In how many seconds that is; None if there is no such time."""
        return None if self.look_at is None else max(0.0, self.look_at - self.clock())

    def choose(
        self, load: Entry, since: float, entries: Iterable[Entry], *, kept: Collection[str]
    ) -> Entry | None:
        """The version to free for a load at once; None: not yet. May begin to drain one.

        since: when the load began to wait. kept: digests of versions that stay.
        """
        if not self.is_overdue(since):
            self.look_at = since + self._patience
            return None
        now = self.clock()
        placed = [e for e in entries if e.on_device and not e.pinned and not e.waiters]
        there = [e for e in placed if e.digest not in kept]
        if not there and load.digest in kept:
            # They lie where they leave no room of its size; of equal sizes that cannot be.
            there = [e for e in placed if e.size < load.size]
        had_turn = [e for e in there if now >= e.placed_at + self._patience]
        others = [e.placed_at for e in there if now < e.placed_at + self._patience]
        self.look_at = min(others) + self._patience if others else None
        unused = [e for e in had_turn if not e.holders]
        if unused:
            return min(unused, key=lambda e: e.placed_at)
        if had_turn and self.draining is None:
            self.draining = min(had_turn, key=lambda e: e.placed_at)
        return None
