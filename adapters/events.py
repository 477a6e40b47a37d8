"""What happens to adapters, in order, for whoever watches: a bounded memory, read by cursor.

A watcher holds no queue here: it remembers how far it has read. Who reads too slowly, or comes
back to a server that was started again, is told that it has missed something.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from polygraft.adapters.alias_records import AliasRecord

MAX_EVENTS = 4096  # remembered, of changes and of residency each


class EventKind(Enum):
    """What happened."""

    PUBLISHED = "published"
    VERSION_DELETED = "version_deleted"
    ALIAS_MOVED = "alias_moved"
    ALIAS_REMOVED = "alias_removed"
    CANARY_WITHDRAWN = "canary_withdrawn"
    QUARANTINED = "quarantined"
    LOADED = "loaded"
    EVICTED = "evicted"


RESIDENCY = frozenset({EventKind.LOADED, EventKind.EVICTED})


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One thing that happened. `detail` is a sentence where there is more to say."""

    kind: EventKind
    adapter_name: str = ""
    number: int = 0
    digest: str = ""
    alias: AliasRecord | None = None
    tier: str = ""  # "host" or "device", of loads and evictions
    detail: str = ""
    at: float = field(default_factory=time.time)  # seconds since the epoch


def event_of_move(record: AliasRecord) -> AdapterEvent:
    """An alias was moved or taken away."""
    kind = EventKind.ALIAS_REMOVED if record.is_removed else EventKind.ALIAS_MOVED
    return AdapterEvent(
        kind, record.adapter_name, record.number, record.digest, record, detail=record.reason
    )


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events with the cursor behind each; `start` is the one in front of them. `missed`: some
    before them are not remembered.
    """

    events: tuple[tuple[AdapterEvent, str], ...]
    start: str
    missed: bool


class EventFeed:
    """Takes events from any thread. Residency has a memory of its own, so that busy loading does
    not push out what changed.
    """

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._id = uuid.uuid4().hex[:12]
        self._max_events = max_events
        self._lock = threading.Lock()
        self._last = 0
        self._memory: dict[bool, deque[tuple[int, AdapterEvent]]] = {False: deque(), True: deque()}
        self._forgotten = {False: 0, True: 0}  # the last that is not remembered
        self._listeners: set[Callable[[], None]] = set()

    def add(self, event: AdapterEvent) -> None:
        """It happened. Listeners are called from this thread."""
        is_residency = event.kind in RESIDENCY
        with self._lock:
            self._last += 1
            memory = self._memory[is_residency]
            memory.append((self._last, event))
            if len(memory) > self._max_events:
                self._forgotten[is_residency] = memory.popleft()[0]
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def cursor(self) -> str:
        """The place behind the last event."""
        with self._lock:
            return self._cursor(self._last)

    def after(self, cursor: str, *, residency: bool = False) -> EventBatch:
        """What happened behind the cursor; for one that is not of this feed, all it remembers."""
        with self._lock:
            place, last = self._place(cursor), self._last
            kinds = (False, True) if residency else (False,)
            missed = place is None or any(place < self._forgotten[kind] for kind in kinds)
            found = [
                numbered
                for kind in kinds
                for numbered in self._memory[kind]
                if place is None or numbered[0] > place
            ]
        found.sort(key=lambda numbered: numbered[0])
        events = tuple((event, self._cursor(number)) for number, event in found)
        return EventBatch(events, self._cursor(found[0][0] - 1 if found else last), missed)

    @contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """`wake` is called after every event, from the thread that adds it; it must be quick."""
        with self._lock:
            self._listeners.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.discard(wake)

    def _cursor(self, number: int) -> str:
        return f"{self._id}.{number}"

    def _place(self, cursor: str) -> int | None:
        feed, _, number = cursor.partition(".")
        if feed != self._id or not (number.isascii() and number.isdigit() and len(number) < 19):
            return None
        place = int(number)
        return place if place <= self._last else None
