"""Callers and arrivals serve every request once, at most so many at a time, traces in order."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from benchmarks.load import Arrival, run_closed_loop, run_open_loop
from benchmarks.workload import Workload, WorkloadRequest

REQUESTS = tuple(WorkloadRequest((index,), "a", 2) for index in range(7))


class Server:
    """Answers prompt [i] with tokens i and i + 1, the earlier ones last."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def stream(self, request: WorkloadRequest) -> AsyncIterator[list[int]]:
        self.running += 1
        self.most = max(self.most, self.running)
        (index,) = request.prompt_token_ids
        for _ in range(2 * (len(REQUESTS) - index)):
            await asyncio.sleep(0)
        yield [index]
        yield [index + 1]
        self.running -= 1


async def test_a_closed_loop_keeps_its_callers_busy_and_adds_none() -> None:
    server = Server()
    traces = await run_closed_loop(server.stream, Workload(REQUESTS, concurrency=3))
    assert [trace.token_ids for trace in traces] == [[i, i + 1] for i in range(7)]
    assert server.most == 3


async def test_an_open_loop_waits_for_nobody() -> None:
    server = Server()
    traces = await run_open_loop(server.stream, [Arrival(0.0, request) for request in REQUESTS])
    assert [trace.token_ids for trace in traces] == [[i, i + 1] for i in range(7)]
    assert server.most == 7


async def test_arrivals_are_sent_not_before_their_time() -> None:
    arrivals = [Arrival(0.05, REQUESTS[1]), Arrival(0.0, REQUESTS[0])]
    late, early = await run_open_loop(Server().stream, arrivals)
    assert late.submitted - early.submitted >= 0.04


async def test_a_failed_request_fails_the_run() -> None:
    async def stream(request: WorkloadRequest) -> AsyncIterator[list[int]]:
        yield [1]
        raise ConnectionError("gone")

    with pytest.RaisesGroup(pytest.RaisesExc(ConnectionError, match="gone")):
        await run_closed_loop(stream, Workload(REQUESTS[:1], concurrency=1))
