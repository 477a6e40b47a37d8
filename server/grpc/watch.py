"""WatchAdapters: the feed's events to whoever watches, as they come, until the watcher leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from polygraft.adapters.errors import Overloaded, Unavailable
from polygraft.adapters.events import RESIDENCY, AdapterEvent, EventFeed
from polygraft.adapters.names import check_name
from polygraft.adapters.registry import Registry
from polygraft.protos import events_pb2
from polygraft.server.grpc.alias_messages import write_event, write_place
from polygraft.server.grpc.boundary import Context, caller_of
from polygraft.server.outputs import SlowReader


class WatchSender:
    """Serves watches of one feed. A watch keeps no events: it remembers how far it has come.

    At most `max_watches` at once, `max_per_caller` of them from one address. `stall_timeout`:
    seconds that one message may wait for the watcher to read before it.
    """

    def __init__(
        self,
        feed: EventFeed,
        registry: Registry,
        *,
        max_watches: int,
        max_per_caller: int,
        stall_timeout: float,
    ) -> None:
        self._feed = feed
        self._registry = registry
        self._max_watches = max_watches
        self._max_per_caller = max_per_caller
        self._stall_timeout = stall_timeout
        self._by_caller: Counter[str] = Counter()
        self._wakers: set[asyncio.Event] = set()
        self._is_ending = False

    @property
    def num_watches(self) -> int:
        """Watches that are running."""
        return self._by_caller.total()

    def end_all(self) -> None:
        """The server drains: watches end with Unavailable, to be resumed at another one."""
        self._is_ending = True
        for waker in self._wakers:
            waker.set()

    async def send(self, request: events_pb2.WatchAdaptersRequest, context: Context) -> None:
        """Write events to the context until the call is cancelled."""
        if request.adapter_name:
            check_name(request.adapter_name)  # else one would wait for ever, without a word
        loop, waker = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(waker.set)

        with (
            self._counted(caller_of(context)),
            self._awake(waker),
            self._feed.listening(wake),
        ):
            cursor = request.cursor or self._feed.cursor()
            is_first = True
            while True:
                waker.clear()
                batch = self._feed.after(cursor, residency=request.include_residency)
                if batch.missed:
                    cursor = batch.start
                if batch.missed or is_first:
                    await self._write(write_place(cursor, missed=batch.missed), context)
                is_first = False
                for event, place in batch.events:
                    if self._is_wanted(event, request.adapter_name):
                        await self._write(write_event(event, place), context)
                    cursor = place
                if self._is_ending:
                    raise Unavailable(
                        "the server is shutting down.", reason="DRAINING", hint="Watch again."
                    )
                await waker.wait()

    @contextmanager
    def _counted(self, caller: str) -> Iterator[None]:
        if self.num_watches >= self._max_watches:
            raise _too_many(self.num_watches, "watches are running", self._max_watches)
        if self._by_caller[caller] >= self._max_per_caller:
            count = self._by_caller[caller]
            raise _too_many(count, f"of them are {caller}'s", self._max_per_caller)
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:
                del self._by_caller[caller]

    @contextmanager
    def _awake(self, waker: asyncio.Event) -> Iterator[None]:
        self._wakers.add(waker)
        try:
            yield
        finally:
            self._wakers.discard(waker)

    def _is_wanted(self, event: AdapterEvent, adapter_name: str) -> bool:
        if not adapter_name or event.adapter_name == adapter_name:
            return True
        if event.kind not in RESIDENCY:
            return False
        return self._registry.find(adapter_name, event.digest) is not None

    async def _write(self, message: events_pb2.AdapterEvent, context: Context) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout):
                await context.write(message)
        except TimeoutError as error:
            raise SlowReader(
                f"the watcher did not read for {self._stall_timeout:g} s.",
                allowed=self._stall_timeout,
                hint="Watch again from the last cursor.",
            ) from error


def _too_many(count: int, what: str, most: int) -> Overloaded:
    return Overloaded(
        f"{count} {what}, the most at once.",
        reason="TOO_MANY_WATCHES",
        found=count,
        allowed=most,
        hint="End one first.",
    )
