"""Which versions are on the host and on the device, and who holds them.

    store --reader threads--> host (LRU by bytes) --placer thread--> device (the engine's pool)

Loads are single-flight: one per version, however many wait. A reference keeps a version where it
is; only unreferenced, unpinned versions are evicted, the least recently used first. When the
device is full of referenced versions, loads wait in the order in which they were read.

Threads. One lock guards the tables and is never held while reading, copying or calling out. Only
the one placer thread reserves, fills and frees places on the device, so these never overlap.
`is_ready` is a set lookup without the lock, for the engine's every step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from polygraft.adapters.errors import (
    AdapterIncompatible,
    DeadlineExpired,
    PolygraftError,
    Unavailable,
)
from polygraft.adapters.resident import (
    DeviceTier,
    Entry,
    Failure,
    ResidencyObserver,
    ResidentVersion,
    Stage,
    Tier,
)
from polygraft.adapters.weights import AdapterWeights

__all__ = ["DeviceTier", "Residency", "ResidencyObserver", "ResidentVersion", "Tier"]
logger = logging.getLogger(__name__)


class Residency:
    """Brings versions to the device and keeps them there while somebody refers to them.

    `read(digest)` returns the weights or raises; it runs in one of `workers` threads.
    `on_change(digest)` is called from a loader thread after a version became ready or failed.
    `host_bytes` bounds the copies kept on the host; loads in progress may exceed it by what the
    reader threads and the placer hold.
    """

    def __init__(
        self,
        read: Callable[[str], AdapterWeights],
        device: DeviceTier,
        *,
        host_bytes: int,
        workers: int = 2,
        on_change: Callable[[str], None],
        observer: ResidencyObserver | None = None,
    ) -> None:
        self._read = read
        self._device_tier = device
        self._host_limit = host_bytes
        self._on_change = on_change
        self._observer = observer
        self._changed = threading.Condition()  # its lock guards everything below
        self._entries: dict[str, Entry] = {}
        self._ready: set[str] = set()  # digests usable by the engine; read without the lock
        self._to_read: deque[Entry] = deque()
        self._to_place: deque[Entry] = deque()
        self._to_free: deque[Entry] = deque()
        self._host_used = 0
        self._clock = 0  # counts uses, for LRU
        self._room = True  # something changed since the head of _to_place found no room
        self._closed = False
        self._threads = [
            threading.Thread(target=self._read_loop, name=f"adapter-reader-{i}", daemon=True)
            for i in range(workers)
        ]
        self._threads.append(
            threading.Thread(target=self._place_loop, name="adapter-placer", daemon=True)
        )
        for thread in self._threads:
            thread.start()

    # Asked by the service and the engine

    def acquire(self, digest: str) -> None:
        """Adds a reference and starts the load unless one is under way. Never blocks.

        A failure that is still remembered is not tried again: `failure` answers at once.
        """
        with self._changed:
            entry = self._entry(digest)
            entry.references += 1
            if entry.failure is None or time.monotonic() >= entry.failure.retry_at:
                self._request(entry)

    def release(self, digest: str) -> None:
        """Takes a reference back; ValueError if there is none. Never blocks."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.references == 0:
                raise ValueError(f"{digest} has no reference to release")
            entry.references -= 1
            self._touch(entry)
            self._let_go(entry)

    def is_ready(self, digest: str) -> bool:
        """Whether it is on the device; stays true for whoever holds a reference."""
        return digest in self._ready

    def failure(self, digest: str) -> Exception | None:
        """Why the last load failed; None while loading, when ready and when never tried."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.failure is None or entry.tier is not Tier.FAILED:
                return None
            return entry.failure.error

    def load(self, digest: str, *, pin: bool = False, timeout: float) -> None:
        """Blocks until the version is on the device; with `pin` it then stays until `unload`.

        A remembered failure is forgotten and tried again. Raises what `read` or the device
        raised, DeadlineExpired after `timeout` seconds, Unavailable when closed.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            entry = self._entry(digest)
            entry.waiters += 1
            try:
                if entry.tier is Tier.FAILED:
                    entry.failure = None
                self._request(entry)
                while not entry.on_device:
                    if entry.tier is Tier.FAILED and entry.failure is not None:
                        raise entry.failure.error
                    self._wait(deadline, f"{digest} was not loaded in {timeout:g} s")
                entry.pinned = entry.pinned or pin
            finally:
                entry.waiters -= 1
                self._let_go(entry)

    def unload(self, digest: str, *, timeout: float) -> None:
        """Unpins, waits for the last reference, then frees the device rows and the host copy.

        New references may still come, but the first moment without any frees the rows. Raises
        DeadlineExpired when references remain after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None:
                return
            entry.pinned = False
            entry.unloaders += 1
            freed_before = entry.times_freed
            try:
                self._let_go(entry)
                while entry.times_freed == freed_before and not self._is_idle(entry):
                    why = f"{entry.references} running requests still use {digest}"
                    self._wait(deadline, why)
            finally:
                entry.unloaders -= 1
                dropped = self._is_idle(entry) and self._drop_host(entry)
                self._let_go(entry)
        if dropped:
            self._tell_evicted([digest], Tier.HOST)

    def tier(self, digest: str) -> Tier:
        """Where the version is."""
        with self._changed:
            entry = self._entries.get(digest)
            return entry.tier if entry else Tier.STORE

    def references(self, digest: str) -> int:
        """How many references are held on the version."""
        with self._changed:
            entry = self._entries.get(digest)
            return entry.references if entry else 0

    def total_references(self) -> int:
        """References on all versions together; 0 when no request is running or waiting."""
        with self._changed:
            return sum(entry.references for entry in self._entries.values())

    def host_bytes(self) -> int:
        """Bytes of the copies on the host."""
        with self._changed:
            return self._host_used

    def snapshot(self) -> list[ResidentVersion]:
        """All versions that are anywhere but in the store, the most recently used first."""
        with self._changed:
            entries = sorted(self._entries.values(), key=lambda e: -e.last_used)
            return [entry.describe() for entry in entries]

    def check_integrity(self) -> None:
        """AssertionError unless sets, queues, stages and byte counts agree."""
        with self._changed:
            entries = self._entries.values()
            on_device = {entry.digest for entry in entries if entry.on_device}
            assert self._ready == on_device, "ready versions are not those on the device"
            used = sum(entry.host.nbytes for entry in entries if entry.host)
            assert self._host_used == used, f"{self._host_used} host bytes counted, {used} held"
            for entry in entries:
                entry.check_integrity()
                assert not entry.is_forgettable, f"{entry.digest} should have been forgotten"
            for stage, queue in (
                (Stage.TO_READ, self._to_read),
                (Stage.TO_PLACE, self._to_place),
                (Stage.TO_FREE, self._to_free),
            ):
                assert len(set(queue)) == len(queue), f"an entry is queued twice for {stage}"
                if stage is not Stage.TO_FREE:  # the placer holds one outside the queue
                    missing = [e for e in entries if e.stage is stage and e not in queue]
                    assert not missing, f"{[e.digest for e in missing]} wait in no queue"

    def close(self) -> None:
        """Ends the threads after what they are doing now. Calls of `load` raise Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # The tables; the lock is held

    def _entry(self, digest: str) -> Entry:
        entry = self._entries.setdefault(digest, Entry(digest))
        self._touch(entry)
        return entry

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.last_used = self._clock

    def _request(self, entry: Entry) -> None:
        """Starts the load of an entry that is neither on the device nor on its way."""
        if entry.on_device or entry.stage is not Stage.IDLE:
            return  # a place being freed is asked for again when that is done
        if entry.host is None:
            entry.stage = Stage.TO_READ
            self._to_read.append(entry)
        else:
            entry.stage = Stage.TO_PLACE
            self._to_place.append(entry)
            self._room = True
        self._changed.notify_all()

    def _let_go(self, entry: Entry) -> None:
        """After a hold on an entry ended: free it if that was asked, make room, forget."""
        if entry.is_held:
            return
        if entry.unloaders and entry.on_device and entry.stage is Stage.IDLE:
            self._start_freeing(entry)
        self._forget_if_possible(entry)
        if self._to_place or entry.unloaders:
            self._room = True
            self._changed.notify_all()

    def _start_freeing(self, entry: Entry) -> None:
        entry.on_device = False
        self._ready.discard(entry.digest)
        entry.stage = Stage.TO_FREE
        self._to_free.append(entry)
        self._changed.notify_all()

    def _is_idle(self, entry: Entry) -> bool:
        return entry.stage is Stage.IDLE and not entry.on_device and not entry.is_held

    def _become_idle(self, entry: Entry) -> None:
        entry.stage = Stage.IDLE
        if entry in self._to_place:
            self._to_place.remove(entry)
        self._room = True
        self._forget_if_possible(entry)
        self._changed.notify_all()

    def _forget_if_possible(self, entry: Entry) -> None:
        if entry.is_forgettable and self._entries.get(entry.digest) is entry:
            del self._entries[entry.digest]

    def _drop_host(self, entry: Entry) -> bool:
        if entry.host is None:
            return False
        self._host_used -= entry.host.nbytes
        entry.host = None
        self._forget_if_possible(entry)
        return True

    def _trim_host(self) -> list[str]:
        """Drops host copies until they fit; those of waiting loads only as the last resort.

        Never the copy of the load that is next in line, else two loads could evict each other
        for ever.
        """
        dropped = []
        while self._host_used > self._host_limit:
            head = self._to_place[0] if self._to_place else None
            candidates = [
                entry
                for entry in self._entries.values()
                if entry.host is not None and entry is not head and entry.stage is not Stage.COPYING
            ]
            if not candidates:
                break
            victim = min(
                candidates, key=lambda e: (e.stage is Stage.TO_PLACE, e.is_held, e.last_used)
            )
            self._drop_host(victim)
            dropped.append(victim.digest)
        return dropped

    def _wait(self, deadline: float, why: str) -> None:
        if self._closed:
            raise Unavailable("the server is stopping.", reason="DRAINING")
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExpired(why + ".", hint="Try again, or allow more time.")
        self._changed.wait(left)

    # Reader threads

    def _read_loop(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._to_read:
                    self._changed.wait()
                if self._closed:
                    return
                entry = self._to_read.popleft()
                if not entry.is_held:
                    self._become_idle(entry)
                    continue
                entry.stage = Stage.READING
            self._read_one(entry)

    def _read_one(self, entry: Entry) -> None:
        started = time.monotonic()
        try:
            weights = self._read(entry.digest)
            if why := self._device_tier.fits(weights):
                raise AdapterIncompatible(
                    f"this server can never load it: {why}.",
                    reason="NO_ADAPTER_ROWS",
                    item=entry.digest,
                    hint="Retrain with a lower rank, or start the server with a larger pool.",
                )
        except Exception as error:
            self._fail(entry, error)
            return
        with self._changed:
            entry.host = weights
            self._host_used += weights.nbytes
            entry.stage = Stage.TO_PLACE
            if entry not in self._to_place:  # a copy read again keeps its place in the line
                self._to_place.append(entry)
            self._room = True
            dropped = self._trim_host()
            self._changed.notify_all()
        self._tell_loaded(entry.digest, Tier.HOST, time.monotonic() - started)
        self._tell_evicted(dropped, Tier.HOST)

    # Placer thread

    def _place_loop(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._to_free or (self._to_place and self._room)):
                    self._changed.wait()
                if self._closed:
                    return
                to_free = self._to_free.popleft() if self._to_free else None
            if to_free is not None:
                self._free(to_free)
            elif (entry := self._next_to_place()) is not None:
                self._place(entry)

    def _free(self, entry: Entry) -> None:
        self._call(self._device_tier.free, entry.digest)
        self._tell_evicted([entry.digest], Tier.DEVICE)
        with self._changed:
            entry.times_freed += 1
            self._become_idle(entry)
            if entry.is_held:
                self._request(entry)

    def _next_to_place(self) -> Entry | None:
        """The first in line if it can be placed now; drops loads that nobody waits for."""
        with self._changed:
            if not self._to_place:
                return None
            entry = self._to_place[0]
            if not entry.is_held and entry.stage is Stage.TO_PLACE:
                self._become_idle(entry)
                return None
            if entry.stage is Stage.TO_PLACE and entry.host is not None:
                return entry
            self._room = False  # until its copy has been read again
            if entry.stage is Stage.TO_PLACE:
                entry.stage = Stage.TO_READ
                self._to_read.appendleft(entry)
                self._changed.notify_all()
            return None

    def _place(self, entry: Entry) -> None:
        weights = entry.host
        assert weights is not None  # the head of the line is never trimmed
        try:
            reserved = self._device_tier.reserve(entry.digest, weights)
        except Exception as error:
            self._fail(entry, error)
            return
        if not reserved:
            self._make_room()
            return
        with self._changed:
            self._to_place.popleft()
            entry.stage = Stage.COPYING
            self._room = True
        self._copy(entry, weights)

    def _make_room(self) -> None:
        """Evicts the least recently used version that nobody holds, else waits for a release."""
        with self._changed:
            evictable = [e for e in self._entries.values() if e.on_device and not e.is_held]
            if evictable:
                self._start_freeing(min(evictable, key=lambda e: e.last_used))
            else:
                self._room = False

    def _copy(self, entry: Entry, weights: AdapterWeights) -> None:
        started = time.monotonic()
        try:
            self._device_tier.copy(entry.digest, weights)
        except Exception as error:
            self._call(self._device_tier.free, entry.digest)
            self._fail(entry, error)
            return
        with self._changed:
            entry.on_device = True
            entry.failure = None
            self._touch(entry)
            self._ready.add(entry.digest)
            self._become_idle(entry)
            self._let_go(entry)
            dropped = self._trim_host()
        self._tell_loaded(entry.digest, Tier.DEVICE, time.monotonic() - started)
        self._tell_evicted(dropped, Tier.HOST)
        self._call(self._on_change, entry.digest)

    # Calls out; the lock is not held

    def _fail(self, entry: Entry, error: Exception) -> None:
        if not isinstance(error, PolygraftError):
            logger.error("loading %s failed", entry.digest, exc_info=error)
        with self._changed:
            entry.failure = Failure.after(entry.failure, error)
            self._become_idle(entry)
        self._call(self._on_change, entry.digest)

    def _tell_loaded(self, digest: str, tier: Tier, seconds: float) -> None:
        if self._observer is not None:
            self._call(self._observer.loaded, digest, tier, seconds)

    def _tell_evicted(self, digests: list[str], tier: Tier) -> None:
        for digest in digests:
            if self._observer is not None:
                self._call(self._observer.evicted, digest, tier)

    @staticmethod
    def _call(callback: Callable[..., None], *arguments: object) -> None:
        """Why swallow: a failing observer must not end the thread that all loads depend on."""
        try:
            callback(*arguments)
        except Exception:
            logger.exception("%r failed", callback)
