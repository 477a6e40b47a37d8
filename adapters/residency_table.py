"""Who is where, who waits for what, and what goes next: residency without threads or I/O.

    IDLE -> TO_READ -> READING -> TO_PLACE -> COPYING -> IDLE on the device -> TO_FREE -> IDLE

Not thread-safe: residency.py holds its lock around every call and does the reading, copying and
freeing in between. `notify` wakes its threads and callers after a change they may wait for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from polygraft.adapters.groups import Groups
from polygraft.adapters.pins import Place
from polygraft.adapters.resident import Entry, Failure, ResidencyStats, Stage, Tier
from polygraft.adapters.rotation import Rotation
from polygraft.adapters.weights import AdapterWeights


class ResidencyTable:
    """Entries by digest, the three queues, and the policy of eviction."""

    def __init__(self, host_bytes: int, notify: Callable[[], None], rotation: Rotation) -> None:
        self.entries: dict[str, Entry] = {}
        self.ready: set[str] = set()  # digests on the device that may be begun with
        self.rotation = rotation
        self.groups = Groups(rotation.clock)
        self.to_read: deque[Entry] = deque()
        self.to_place: list[Entry] = []
        self.to_free: deque[Entry] = deque()
        self.host_used = 0
        self.host_limit = host_bytes
        self._clock = 0  # counts uses, for LRU
        self._room = False  # something changed since nobody in line found room
        self._tried: set[Entry] = set()  # of the line, those who found no room since then
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

    # What requests do

    def want(self, digests: Sequence[str]) -> list[Entry]:
        """One more request wants these versions."""
        entries = [self.entry(digest) for digest in digests]
        for entry in entries:
            entry.references += 1
        self.groups.wait(digests)
        return entries

    def unwant(self, digests: Sequence[str]) -> None:
        """A request that does not hold these versions, or not any more, has ended."""
        self.groups.give_up(digests)
        for entry in [self.entries[digest] for digest in digests]:
            entry.references -= 1
            self.touch(entry)
            self.let_go(entry)
        if len(digests) > 1:
            self._look_again()  # others may be kept together now, and these evicted
            self._notify()

    def hold(self, digests: Sequence[str]) -> bool:
        """A request begins to compute with these versions; False if one is not ready."""
        if not self.ready.issuperset(digests):
            return False
        for digest in digests:
            self.entries[digest].holders += 1
        self.groups.hold(digests)
        return True

    def drop(self, digests: Sequence[str]) -> None:
        """What `hold` began has ended; the request still wants them."""
        self.groups.wait(digests)
        for digest in digests:
            self._drop(self.entries[digest])

    def request(self, entry: Entry) -> None:
        """Starts the load of an entry that is neither on the device nor on its way."""
        if entry.on_device or entry.stage is not Stage.IDLE:
            return  # a place being freed is asked for again by `freed`
        self.rotation.start_waiting(entry)
        if entry.host is None:
            entry.stage = Stage.TO_READ
            self.to_read.append(entry)
        else:
            self._stand_in_line(entry)
        self._notify()

    def let_go(self, entry: Entry) -> None:
        """After a want of an entry ended: stop its load, or free it if that was asked."""
        if entry.is_wanted:
            return
        if entry.unloaders and entry.on_device:
            self._start_freeing(entry)
        elif entry.stage in (Stage.TO_READ, Stage.TO_PLACE):
            self._become_idle(entry)
        self._forget_if_possible(entry)
        if self.to_place or entry.unloaders:
            self._look_again()
            self._notify()

    def _drop(self, entry: Entry) -> None:
        entry.holders -= 1
        if entry.holders:
            return
        if entry is self.rotation.draining and not (entry.pinned or entry.waiters):
            self._start_freeing(entry)
        elif self.to_place:
            self._look_again()  # an overdue load may take its place
            self._notify()

    def is_absent(self, entry: Entry) -> bool:
        """Neither on the device, nor on the way there, nor wanted there."""
        return entry.stage is Stage.IDLE and not entry.on_device and not entry.is_wanted

    # What the reader threads do next, and what came of it

    def next_to_read(self) -> Entry | None:
        """The next entry to read, now READING."""
        if not self.to_read:
            return None
        entry = self.to_read.popleft()
        entry.stage = Stage.READING
        return entry

    def was_read(self, entry: Entry, weights: AdapterWeights) -> list[str]:
        """Puts an entry in line for the device; returns whose host copies were dropped."""
        entry.host = weights
        entry.size = (weights.max_rank, weights.num_virtual_tokens)
        self.host_used += weights.nbytes
        if entry.is_wanted:
            self._stand_in_line(entry)
        else:
            self._become_idle(entry)
        self._notify()
        return self.trim_host()

    def failed(self, entry: Entry, error: Exception) -> None:
        """Remembers the failure of reading, reserving or copying."""
        entry.failure = Failure.after(entry.failure, error)
        self._become_idle(entry)

    # What the placer thread does next, and what came of it

    def has_work_for_placer(self) -> bool:
        """Whether `to_free` or somebody in the line can be worked on now."""
        is_time = self.rotation.is_time_to_look
        return bool(self.to_free or (self.to_place and (self._room or is_time)))

    def seconds_to_work(self) -> float | None:
        """In how many seconds there may be work for the placer though nobody calls; None: never."""
        return self.rotation.seconds_to_look() if self.to_place else None

    def stop_draining(self) -> str | None:
        """Let a draining version be used again if no load needs its place; returns its digest."""
        entry = self.rotation.draining
        if entry is None:
            return None
        first = self.first_in_line()
        is_needed = first is not None and self.rotation.is_overdue(self.groups.since(first))
        if is_needed and not (entry.pinned or entry.waiters):
            return None
        self.rotation.draining = None
        self.ready.add(entry.digest)
        return entry.digest

    def first_in_line(self) -> Entry | None:
        """Who has waited longest for a place on the device."""
        return min(self.to_place, key=self.groups.place_in_line, default=None)

    def next_to_place(self) -> Entry | None:
        """Who is tried next: the first in line, and as long as that is not overdue those behind it
        too, so that small loads pass large ones. It is COPYING from here on, so whoever lets go of
        it meanwhile does not take it out of the placer's hands."""
        if self.rotation.is_time_to_look:
            self.rotation.look_at = None
            self._look_again()
        first = self.first_in_line()
        for entry in sorted(self.to_place, key=self.groups.place_in_line):
            if entry.stage is Stage.TO_PLACE and entry not in self._tried:
                if entry.host is not None:
                    entry.stage = Stage.COPYING
                    return entry
                if entry is first:  # its copy was trimmed while it waited
                    entry.stage = Stage.TO_READ
                    self.to_read.appendleft(entry)
                    self._notify()
            if entry is first and self.rotation.is_overdue(self.groups.since(entry)):
                break
        self._room = False
        return None

    def make_room(self, load: Entry) -> None:
        """The load found no room. For the first in line the least recently used version goes that
        nobody wants, else, if it is overdue, one that is wanted; else it waits."""
        load.stage = Stage.TO_PLACE
        if not load.is_wanted:
            self._become_idle(load)
            return
        self._tried.add(load)
        if load is not self.first_in_line():
            return
        unwanted = [e for e in self.entries.values() if e.on_device and not e.is_wanted]
        if unwanted:
            self._start_freeing(min(unwanted, key=lambda e: e.last_used))
            return
        since, kept = self.groups.since(load), self.groups.kept_from(load)
        chosen = self.rotation.choose(load, since, self.entries.values(), kept=kept)
        if chosen is not None:
            self._start_freeing(chosen)
            return
        if self.rotation.draining is not None:
            self.ready.discard(self.rotation.draining.digest)

    def start_copying(self, entry: Entry) -> None:
        """One of the line has a place now."""
        self.to_place.remove(entry)
        self._look_again()

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
        if entry.is_wanted:
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

        Those of waiting loads go last, before them those kept for a rollback, and never that of
        the load which is next in line, else two loads could evict each other for ever.
        """
        dropped: list[str] = []
        while self.host_used > self.host_limit:
            first = self.first_in_line()
            candidates = [
                entry
                for entry in self.entries.values()
                if entry.host is not None
                and entry is not first
                and entry.stage is not Stage.COPYING
            ]
            if not candidates:
                break
            victim = min(candidates, key=self._worth)
            self.drop_host(victim)
            dropped.append(victim.digest)
        return dropped

    def _worth(self, entry: Entry) -> tuple[bool, bool, bool, int]:
        """The host copy of the least is dropped first."""
        is_kept = entry.kept_until > self.rotation.clock()
        return (entry.stage is Stage.TO_PLACE, is_kept, entry.is_wanted, entry.last_used)

    def stats(self, pinned: Place) -> ResidencyStats:
        """A snapshot of counts and bytes."""
        tiers = Counter(entry.tier for entry in self.entries.values())
        counts: dict[Tier, int] = {tier: tiers[tier] for tier in Tier if tier is not Tier.STORE}
        return ResidencyStats(counts, self.host_used, self.host_limit, pinned)

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
            idle = [e.digest for e in entries if e.stage is stage and not e.is_wanted]
            assert not idle, f"{idle} wait for nobody"

    def _stand_in_line(self, entry: Entry) -> None:
        entry.stage = Stage.TO_PLACE
        if entry not in self.to_place:  # a copy that was read again keeps its place in the line
            self.to_place.append(entry)
        self._tried.discard(entry)
        self._room = True

    def _look_again(self) -> None:
        """Something changed: whoever found no room may find it now."""
        self._room = True
        self._tried.clear()

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
        if entry.stage is Stage.TO_READ:
            self.to_read.remove(entry)
        entry.stage = Stage.IDLE
        if entry in self.to_place:
            self.to_place.remove(entry)
        self._look_again()
        self._forget_if_possible(entry)
        self._notify()

    def _forget_if_possible(self, entry: Entry) -> None:
        if entry.is_forgettable and self.entries.get(entry.digest) is entry:
            del self.entries[entry.digest]
