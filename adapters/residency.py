"""Which versions are on the host and on the device, and who holds them.

    store --reader threads--> host (LRU by bytes) --placer thread--> device (the engine's pool)

Loads are single-flight: one per version, however many wait. A reference keeps a version where it
is. To make room the least recently used version goes that nobody refers to. When the device is
full of referenced versions, loads wait in the order in which they were read, and after a while
versions that are only wanted, not computed with, make room in turn (`rotation.py`).

Threads. One lock guards the tables and is never held while reading, copying or calling out. Only
the one placer thread reserves, fills and frees places on the device, so these never overlap.
`is_ready` is a set lookup without the lock, for the engine's every step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from polygraft.adapters.announcements import Announcements, call_safely
from polygraft.adapters.errors import (
    AdapterIncompatible,
    DeadlineExpired,
    PolygraftError,
    Unavailable,
)
from polygraft.adapters.pins import UNLIMITED, Pins
from polygraft.adapters.residency_table import ResidencyTable
from polygraft.adapters.resident import (
    DeviceTier,
    Entry,
    ResidencyObserver,
    ResidencyStats,
    ResidentVersion,
    Tier,
)
from polygraft.adapters.rotation import Rotation
from polygraft.adapters.weights import AdapterWeights

__all__ = [
    "DeviceTier",
    "Residency",
    "ResidencyObserver",
    "ResidencyStats",
    "ResidentVersion",
    "Tier",
]
logger = logging.getLogger(__name__)


class Residency:
    """Brings versions to the device and keeps them there while somebody refers to them.

    `read(digest)` returns the weights or raises; it runs in one of `workers` threads.
    `on_change(digest)` is called from a loader thread after a version became ready or failed.
    `host_bytes` bounds the copies kept on the host; loads in progress may exceed it by what the
    reader threads and the placer hold. `patience`: seconds that a load waits before versions that
    are wanted, but have had their turn, make room for it (see Rotation). `pins` limits what is
    pinned.
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
        patience: float = 1.0,
        pins: Pins = UNLIMITED,
    ) -> None:
        self._read = read
        self._device = device
        self._on_change = on_change
        self._tell = Announcements(observer)
        self._pins = pins
        self._changed = threading.Condition()  # its lock guards the table
        rotation = Rotation(patience, time.monotonic)
        self._table = ResidencyTable(host_bytes, self._changed.notify_all, rotation)
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

    def acquire(self, *digests: str) -> None:
        """Adds a reference to each version, for a request that needs all of them at once, and
        starts the loads that are not under way. Never blocks.

        A failure that is still remembered is not tried again: `failure` answers at once.
        """
        with self._changed:
            for entry in self._table.want(digests):
                if entry.failure is None or time.monotonic() >= entry.failure.retry_at:
                    self._table.request(entry)

    def release(self, *digests: str) -> None:
        """Takes back the references of an `acquire`; ValueError if there are none. Never blocks."""
        with self._changed:
            for digest in digests:
                entry = self._table.entries.get(digest)
                if entry is None or entry.references == 0:
                    raise ValueError(f"{digest} has no reference to release")
            self._table.unwant(digests)

    def hold(self, *digests: str) -> bool:
        """Keeps versions on the device until `drop`; all of them or, when False, none.

        The caller has acquired them. False while one of them is not on the device.
        """
        with self._changed:
            return self._table.hold(digests)

    def drop(self, *digests: str) -> None:
        """Ends what `hold` began; the references stay. Never blocks."""
        with self._changed:
            self._table.drop(digests)

    def is_ready(self, *digests: str) -> bool:
        """Whether all are on the device; stays true for whoever holds them."""
        return self._table.ready.issuperset(digests)

    def failure(self, *digests: str) -> Exception | None:
        """Why the last load of one of them failed; None while loading and when never tried."""
        with self._changed:
            for digest in digests:
                entry = self._table.entries.get(digest)
                if entry is not None and entry.failure is not None and entry.tier is Tier.FAILED:
                    return entry.failure.error
        return None

    def load(
        self,
        digest: str,
        *,
        pin: bool = False,
        namespace: str = "",
        timeout: float,
        abandoned: threading.Event | None = None,
    ) -> None:
        """Blocks until the version is on the device; with `pin` it then stays until `unload`, on
        the account of the namespace.

        A remembered failure is forgotten and tried again. Raises what `read` or the device
        raised, DeadlineExpired after `timeout` seconds or `abandon`, Unavailable when closed, and
        Overloaded (PIN_LIMIT), the version being on the device then but not pinned.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            entry = self._table.entry(digest)
            entry.waiters += 1
            try:
                if entry.tier is Tier.FAILED:
                    entry.failure = None
                self._table.request(entry)
                while not entry.on_device:
                    if entry.tier is Tier.FAILED and entry.failure is not None:
                        raise entry.failure.error
                    self._wait(deadline, f"{digest} was not loaded in {timeout:g} s", abandoned)
                if pin:
                    self._pins.add(digest, namespace)
                entry.pinned = entry.pinned or pin
                self._changed.notify_all()  # it need not be drained any more
            finally:
                entry.waiters -= 1
                self._table.let_go(entry)

    def unload(
        self, digest: str, *, timeout: float, abandoned: threading.Event | None = None
    ) -> None:
        """Unpins, waits for the last reference, then frees the device rows and the host copy.

        New references may still come, but the first moment without any frees the rows. Raises
        DeadlineExpired when references remain after `timeout` seconds or on `abandon`.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            entry = self._table.entries.get(digest)
            if entry is None:
                return
            entry.pinned = False
            self._pins.remove(digest)
            entry.unloaders += 1
            freed_before = entry.times_freed
            try:
                self._table.let_go(entry)
                while entry.times_freed == freed_before and not self._table.is_absent(entry):
                    why = f"{entry.references} running requests still use {digest}"
                    self._wait(deadline, why, abandoned)
            finally:
                entry.unloaders -= 1
                dropped = self._table.is_absent(entry) and self._table.drop_host(entry)
                self._table.let_go(entry)
        if dropped:
            self._tell.evicted([digest], Tier.HOST)

    def keep(self, digest: str, seconds: float) -> None:
        """For so long the version's host copy, if there is one, goes after those of others."""
        with self._changed:
            if entry := self._table.entries.get(digest):
                entry.kept_until = time.monotonic() + seconds

    def abandon(self, abandoned: threading.Event) -> None:
        """End the `load` or `unload` that was given this event: its caller has left."""
        with self._changed:
            abandoned.set()
            self._changed.notify_all()

    def check_room(self, ranks: Mapping[str, int]) -> None:
        """Raises AdapterIncompatible if versions, digest -> largest rank, cannot be on the device
        together because of what is pinned. Never blocks."""
        with self._changed:
            self._pins.check_room(ranks)

    def stats(self) -> ResidencyStats:
        """A snapshot of counts and bytes."""
        with self._changed:
            return self._table.stats(self._pins.rows)

    def tier(self, digest: str) -> Tier:
        """Where the version is."""
        with self._changed:
            entry = self._table.entries.get(digest)
            return entry.tier if entry else Tier.STORE

    def references(self, digest: str) -> int:
        """How many references are held on the version."""
        with self._changed:
            entry = self._table.entries.get(digest)
            return entry.references if entry else 0

    def is_wanted(self, digest: str) -> bool:
        """Whether requests, a pin or a load in progress want the version."""
        with self._changed:
            entry = self._table.entries.get(digest)
            return entry is not None and entry.is_wanted

    def total_references(self) -> int:
        """References on all versions together; 0 when no request is running or waiting."""
        with self._changed:
            return sum(entry.references for entry in self._table.entries.values())

    def host_bytes(self) -> int:
        """Bytes of the copies on the host."""
        with self._changed:
            return self._table.host_used

    def snapshot(self) -> list[ResidentVersion]:
        """All versions that are anywhere but in the store, the most recently used first."""
        with self._changed:
            entries = sorted(self._table.entries.values(), key=lambda e: -e.last_used)
            return [entry.describe() for entry in entries]

    def check_integrity(self) -> None:
        """AssertionError unless sets, queues, stages and byte counts agree."""
        with self._changed:
            self._table.check_integrity()

    def close(self) -> None:
        """Ends the threads after what they are doing now. Calls of `load` raise Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # Loader threads

    def _wait(self, deadline: float, why: str, abandoned: threading.Event | None) -> None:
        if self._closed:
            raise Unavailable("the server is stopping.", reason="DRAINING")
        if abandoned is not None and abandoned.is_set():
            raise DeadlineExpired("the caller has left.")
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExpired(why + ".", hint="Try again, or allow more time.")
        self._changed.wait(left)

    def _read_loop(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._table.to_read:
                    self._changed.wait()
                if self._closed:
                    return
                entry = self._table.next_to_read()
            if entry is not None:
                self._read_one(entry)

    def _read_one(self, entry: Entry) -> None:
        started = time.monotonic()
        try:
            weights = self._read(entry.digest)
            self._check_fits(entry.digest, weights)
        except Exception as error:
            self._fail(entry, error)
            return
        with self._changed:
            dropped = self._table.was_read(entry, weights)
        self._tell.loaded(entry.digest, Tier.HOST, time.monotonic() - started)
        self._tell.evicted(dropped, Tier.HOST)

    def _place_loop(self) -> None:
        while True:
            with self._changed:
                usable_again = self._wait_for_placer_work()
                if self._closed:
                    return
                to_free = self._table.to_free.popleft() if self._table.to_free else None
                to_place = None if to_free else self._table.next_to_place()
            if usable_again is not None:
                call_safely(self._on_change, usable_again)
            if to_free is not None:
                self._free(to_free)
            elif to_place is not None:
                self._place(to_place)

    def _wait_for_placer_work(self) -> str | None:
        """The version that need not be drained any more, if that is the work."""
        while not self._closed:
            usable_again = self._table.stop_draining()
            if usable_again is not None or self._table.has_work_for_placer():
                return usable_again
            self._changed.wait(self._table.seconds_to_work())
        return None

    def _free(self, entry: Entry) -> None:
        call_safely(self._device.free, entry.digest)
        self._tell.evicted([entry.digest], Tier.DEVICE)
        with self._changed:
            self._table.was_freed(entry)

    def _place(self, entry: Entry) -> None:
        weights = entry.host
        assert weights is not None
        try:
            reserved = self._device.reserve(entry.digest, weights)
        except Exception as error:
            self._fail(entry, error)
            return
        with self._changed:
            if not reserved:
                self._table.make_room(entry)
                return
            self._table.start_copying(entry)
        self._copy(entry, weights)

    def _copy(self, entry: Entry, weights: AdapterWeights) -> None:
        started = time.monotonic()
        try:
            self._device.copy(entry.digest, weights)
        except Exception as error:
            call_safely(self._device.free, entry.digest)
            self._fail(entry, error)
            return
        with self._changed:
            dropped = self._table.was_copied(entry)
        self._tell.loaded(entry.digest, Tier.DEVICE, time.monotonic() - started)
        self._tell.evicted(dropped, Tier.HOST)
        call_safely(self._on_change, entry.digest)

    def _check_fits(self, digest: str, weights: AdapterWeights) -> None:
        if why := self._device.fits(weights):
            raise AdapterIncompatible(
                f"this server can never load it: {why}.",
                reason="NO_ADAPTER_ROWS",
                item=digest,
                hint="Retrain with a lower rank, or start the server with a larger pool.",
            )

    # Calls out; the lock is not held

    def _fail(self, entry: Entry, error: Exception) -> None:
        if not isinstance(error, PolygraftError):
            logger.error("loading %s failed", entry.digest, exc_info=error)
        with self._changed:
            self._table.failed(entry, error)
        call_safely(self._on_change, entry.digest)
