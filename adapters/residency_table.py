"""Who is where, who waits for what, and what goes next: residency without threads or I/O.

    IDLE -> TO_READ -> READING -> TO_PLACE -> COPYING -> IDLE on the device -> TO_FREE -> IDLE

Not thread-safe: residency.py holds its lock around every call and does the reading, copying and
freeing in between. `notify` wakes its threads and callers after a change they may wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from polygraft.adapters.resident import Entry, Failure, Stage
from polygraft.adapters.rotation import Rotation
from polygraft.adapters.weights import AdapterWeights


class ResidencyTable:
    """Entries by digest, the three queues, and the policy of eviction."""

    def __init__(self, host_bytes: int, notify: Callable[[], None], rotation: Rotation) -> None:
        self.entries: dict[str, Entry] = {}
        self.ready: set[str] = set()  # digests on the device that may be begun with
        self.rotation = rotation
        self.to_read: deque[Entry] = deque()
        self.to_place: deque[Entry] = deque()
        self.to_free: deque[Entry] = deque()
        self.host_used = 0
        self._host_limit = host_bytes
        self._clock = 0  # counts uses, for LRU
        self._room = False  # something changed since the head of to_place found no room
        self._notify = notify

    def entry(self, digest: str) -> Entry:
        """The entry of a version, made if there is none, marked as used now."""
        entry = self.entries.setdefault(digest, Entry(digest))
        self.touch(entry)
        return entry

    def touch(self, entry: Entry) -> None:
        """Makes the entry the most recently used."""
        self._clock += 1
        entry.last_used = self._clock

    def request(self, entry: Entry) -> None:
        """Starts the load of an entry that is neither on the device nor on its way."""
        if entry.on_device or entry.stage is not Stage.IDLE:
            return  # a place being freed is asked for again by `freed`
        self.rotation.start_waiting(entry)
        if entry.host is None:
            entry.stage = Stage.TO_READ
            self.to_read.append(entry)
        else:
            entry.stage = Stage.TO_PLACE
            self.to_place.append(entry)
            self._room = True
        self._notify()

    def let_go(self, entry: Entry) -> None:
        """After a hold on an entry ended: free it if that was asked, retry waiting loads."""
        if entry.is_held:
            return
        if entry.unloaders and entry.on_device:
            self._start_freeing(entry)
        self._forget_if_possible(entry)
        if self.to_place or entry.unloaders:
            self._room = True
            self._notify()

    def drop(self, entry: Entry) -> None:
        """One request less computes with an entry."""
        entry.holders -= 1
        if entry.holders:
            return
        if entry is self.rotation.draining and not (entry.pinned or entry.waiters):
            self._start_freeing(entry)
        elif self.to_place:
            self._room = True  # an overdue load may take its place
            self._notify()

    def is_absent(self, entry: Entry) -> bool:
        """Neither on the device, nor on the way there, nor wanted there."""
        return entry.stage is Stage.IDLE and not entry.on_device and not entry.is_held

    # What the reader threads do next, and what came of it

    def next_to_read(self) -> Entry | None:
        """The next entry to read, now READING; drops those that nobody waits for any more."""
        while self.to_read:
            entry = self.to_read.popleft()
            if entry.is_held:
                entry.stage = Stage.READING
                return entry
            self._become_idle(entry)
        return None

    def was_read(self, entry: Entry, weights: AdapterWeights) -> list[str]:
        """Puts an entry in line for the device; returns whose host copies were dropped."""
        entry.host = weights
        self.host_used += weights.nbytes
        entry.stage = Stage.TO_PLACE
        if entry not in self.to_place:  # a copy that was read again keeps its place in the line
            self.to_place.append(entry)
        self._room = True
        self._notify()
        return self.trim_host()

    def failed(self, entry: Entry, error: Exception) -> None:
        """Remembers the failure of reading, reserving or copying."""
        entry.failure = Failure.after(entry.failure, error)
        self._become_idle(entry)

    # What the placer thread does next, and what came of it

    def has_work_for_placer(self) -> bool:
        """Whether `to_free` or the head of `to_place` can be worked on now."""
        is_time = self.rotation.seconds_to_look() == 0.0
        return bool(self.to_free or (self.to_place and (self._room or is_time)))

    def seconds_to_work(self) -> float | None:
        """In how many seconds there may be work for the placer though nobody calls; None: never."""
        return self.rotation.seconds_to_look() if self.to_place else None

    def stop_draining(self) -> str | None:
        """Let a draining version be used again if no load needs its place; returns its digest."""
        entry = self.rotation.draining
        if entry is None:
            return None
        is_needed = self.to_place and self.rotation.is_overdue(self.to_place[0])
        if is_needed and not (entry.pinned or entry.waiters):
            return None
        self.rotation.draining = None
        self.ready.add(entry.digest)
        return entry.digest

    def next_to_place(self) -> Entry | None:
        """The first in line if it can be placed now; drops loads that nobody waits for."""
        self.rotation.look_at = None
        while self.to_place:
            entry = self.to_place[0]
            if entry.stage is Stage.TO_PLACE and not entry.is_held:
                self._become_idle(entry)
                continue
            if entry.stage is Stage.TO_PLACE and entry.host is not None:
                return entry
            if entry.stage is Stage.TO_PLACE:  # its copy was trimmed while it waited
                entry.stage = Stage.TO_READ
                self.to_read.appendleft(entry)
                self._notify()
            break
        self._room = False
        return None

    def make_room(self, load: Entry) -> None:
        """Evicts the least recently used version that nobody wants, else, for a load that is
        overdue, one that is wanted; else waits."""
        unwanted = [e for e in self.entries.values() if e.on_device and not e.is_held]
        if unwanted:
            self._start_freeing(min(unwanted, key=lambda e: e.last_used))
            return
        chosen = self.rotation.choose(load, self.entries.values())
        if chosen is not None:
            self._start_freeing(chosen)
            return
        if self.rotation.draining is not None:
            self.ready.discard(self.rotation.draining.digest)
        self._room = False

    def start_copying(self, entry: Entry) -> None:
        """The head of the line has a place now."""
        assert self.to_place.popleft() is entry, f"{entry.digest} was not first in line"
        entry.stage = Stage.COPYING
        self._room = True

    def was_copied(self, entry: Entry) -> list[str]:
        """The entry is on the device; returns whose host copies were dropped."""
        entry.on_device = True
        entry.failure = None
        self.ready.add(entry.digest)
        self.rotation.start_turn(entry)
        self.touch(entry)
        self._become_idle(entry)
        self.let_go(entry)
        return self.trim_host()

    def was_freed(self, entry: Entry) -> None:
        """Its place is free; loads it again if it has been asked for meanwhile."""
        entry.times_freed += 1
        self._become_idle(entry)
        if entry.is_held:
            self.request(entry)

    # Host copies

    def drop_host(self, entry: Entry) -> bool:
        """Drops the host copy; False if there was none."""
        if entry.host is None:
            return False
        self.host_used -= entry.host.nbytes
        entry.host = None
        self._forget_if_possible(entry)
        return True

    def trim_host(self) -> list[str]:
        """Drops host copies until they fit the limit; returns whose.

        Those of waiting loads go last, and never that of the load which is next in line, else
        two loads could evict each other for ever.
        """
        dropped: list[str] = []
        while self.host_used > self._host_limit:
            head = self.to_place[0] if self.to_place else None
            candidates = [
                entry
                for entry in self.entries.values()
                if entry.host is not None and entry is not head and entry.stage is not Stage.COPYING
            ]
            if not candidates:
                break
            victim = min(
                candidates, key=lambda e: (e.stage is Stage.TO_PLACE, e.is_held, e.last_used)
            )
            self.drop_host(victim)
            dropped.append(victim.digest)
        return dropped

    def check_integrity(self) -> None:
        """AssertionError unless sets, queues, stages and byte counts agree."""
        entries = self.entries.values()
        draining = self.rotation.draining
        on_device = {entry.digest for entry in entries if entry.on_device and entry is not draining}
        assert self.ready == on_device, "ready versions are not those on the device"
        assert draining is None or draining.on_device, "what is drained is not there"
        used = sum(entry.host.nbytes for entry in entries if entry.host)
        assert self.host_used == used, f"{self.host_used} host bytes counted, {used} held"
        for entry in entries:
            entry.check_integrity()
            assert not entry.is_forgettable, f"{entry.digest} should have been forgotten"
        for stage, queue in ((Stage.TO_READ, self.to_read), (Stage.TO_PLACE, self.to_place)):
            assert len(set(queue)) == len(queue), f"an entry is queued twice for {stage}"
            lost = [
                entry.digest for entry in entries if entry.stage is stage and entry not in queue
            ]
            assert not lost, f"{lost} wait in no queue"

    def _start_freeing(self, entry: Entry) -> None:
        assert not entry.holders, f"{entry.digest} is computed with"
        entry.on_device = False
        self.ready.discard(entry.digest)
        if entry is self.rotation.draining:
            self.rotation.draining = None
        entry.stage = Stage.TO_FREE
        self.to_free.append(entry)
        self._notify()

    def _become_idle(self, entry: Entry) -> None:
        entry.stage = Stage.IDLE
        if entry in self.to_place:
            self.to_place.remove(entry)
        self._room = True
        self._forget_if_possible(entry)
        self._notify()

    def _forget_if_possible(self, entry: Entry) -> None:
        if entry.is_forgettable and self.entries.get(entry.digest) is entry:
            del self.entries[entry.digest]
