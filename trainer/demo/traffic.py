"""Requests to the running server: a mixed concurrent load, and streams across a swap."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from polygraft.adapters.errors import PolygraftError
from polygraft.client import AsyncClient, Generation
from polygraft.trainer.push.pipeline import PushResult

Request = dict[str, Any]
"""Arguments of `client.generate`."""


@dataclass(frozen=True)
class Answered:
    """One streamed answer. Times in seconds from sending the request."""

    request: Request
    generation: Generation
    first_text: float
    whole: float


@dataclass
class Load:
    """What came of a number of requests."""

    answered: list[Answered] = field(default_factory=list)
    failed: list[PolygraftError] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all requests together."""
        return sum(a.generation.usage.output_tokens for a in self.answered) / self.seconds

    @property
    def median_first_text(self) -> float:
        """Seconds until an answer begins, median."""
        times = sorted(answer.first_text for answer in self.answered)
        return times[len(times) // 2]


@dataclass
class Swap:
    """A load during which an alias moved."""

    load: Load
    push: PushResult

    def by_version(self) -> list[tuple[int, int]]:
        """(version number, answers it gave), by number."""
        versions = (answered.generation.version for answered in self.load.answered)
        return sorted(Counter(v.number for v in versions if v is not None).items())


async def mixed_load(address: str, requests: Sequence[Request]) -> Load:
    """All requests at once, streamed."""
    load = Load()
    started = time.monotonic()
    async with AsyncClient(address) as client:
        await asyncio.gather(*(_stream(client, request, load) for request in requests))
    load.seconds = time.monotonic() - started
    return load


async def swap_under_load(
    address: str, requests: Sequence[Request], push: Callable[[], PushResult], *, streams: int
) -> Swap:
    """Keep `streams` requests in flight while `push`, in a thread of its own, moves their alias.

    Goes on until the old and the new version each had time to answer every stream twice.
    """
    load = Load()
    started = time.monotonic()
    supply = itertools.cycle(requests)
    ended = asyncio.Event()

    async def keep_asking(client: AsyncClient) -> None:
        while not ended.is_set():
            await _stream(client, next(supply), load)

    async def answers(count: int) -> None:
        goal = len(load.answered) + count
        while len(load.answered) < goal and not load.failed:
            await asyncio.sleep(0.005)

    async with AsyncClient(address) as client, asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(keep_asking(client))
        await answers(2 * streams)
        pushed = await asyncio.to_thread(push)
        await answers(3 * streams)
        ended.set()
    load.seconds = time.monotonic() - started
    return Swap(load, pushed)


async def _stream(client: AsyncClient, request: Request, load: Load) -> None:
    started = time.monotonic()
    first = None
    stream = client.stream(**request)
    try:
        async for piece in stream:
            if piece.text and first is None:
                first = time.monotonic() - started
    except PolygraftError as error:
        load.failed.append(error)
        return
    assert stream.generation is not None
    whole = time.monotonic() - started
    load.answered.append(Answered(request, stream.generation, first or whole, whole))
