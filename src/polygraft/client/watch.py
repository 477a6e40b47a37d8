"""Watching adapters: an iterator over events, synchronous and asynchronous.

A watch that ends by an error is resumed with `watch(cursor=...)`; the first event then says
whether something was missed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc

from polygraft.adapters.errors import PolygraftError
from polygraft.client.alias_results import AdapterEvent
from polygraft.protos import events_pb2

METHOD = "WatchAdapters"
ErrorOf = Callable[[Any], PolygraftError]


def request_of(name: str, cursor: str, include_residency: bool) -> events_pb2.WatchAdaptersRequest:
    """What is watched."""
    return events_pb2.WatchAdaptersRequest(
        adapter_name=name, cursor=cursor, include_residency=include_residency
    )


class Watch:
    """Events as they come, up to `cursor`. Leaving (`close`, `with`) ends the watch."""

    def __init__(self, call: Any, error_of: ErrorOf) -> None:
        self.cursor = ""
        self._call = call
        self._error_of = error_of

    def __iter__(self) -> Iterator[AdapterEvent]:
        return self

    def __next__(self) -> AdapterEvent:
        try:
            event = AdapterEvent.read(next(self._call))
        except grpc.RpcError:
            raise self._error_of(self._call) from None
        self.cursor = event.cursor
        return event

    def close(self) -> None:
        """End the watch."""
        self._call.cancel()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncWatch:
    """As Watch, for `async for` and `async with`."""

    def __init__(self, call: Any, error_of: ErrorOf) -> None:
        self.cursor = ""
        self._call = call
        self._error_of = error_of
        self._messages = aiter(call)

    def __aiter__(self) -> AsyncIterator[AdapterEvent]:
        return self

    async def __anext__(self) -> AdapterEvent:
        try:
            event = AdapterEvent.read(await anext(self._messages))
        except grpc.aio.AioRpcError as failed:
            raise self._error_of(failed) from None
        self.cursor = event.cursor
        return event

    async def aclose(self) -> None:
        """End the watch."""
        self._call.cancel()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
