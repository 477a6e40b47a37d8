"""Load generators: callers in a closed loop, or arrivals at given times. Know no system."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.workload import RequestTrace, Workload, WorkloadRequest

Stream = Callable[[WorkloadRequest], AsyncIterator[list[int]]]
"""Serves one request: yields the ids of its output tokens in pieces, as they come."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it is sent."""

    at: float  # seconds from the start of the run
    request: WorkloadRequest


async def trace_of(stream: Stream, request: WorkloadRequest) -> RequestTrace:
    """Serve one request and note when its tokens came."""
    trace = RequestTrace(submitted=time.perf_counter())
    async for token_ids in stream(request):
        trace.record(token_ids, time.perf_counter())
    return trace


async def run_closed_loop(stream: Stream, workload: Workload) -> list[RequestTrace]:
    """`workload.concurrency` callers take turns at the requests; traces in the requests' order."""
    traces: dict[int, RequestTrace] = {}
    todo = iter(enumerate(workload.requests))

    async def call_in_turn(todo: Iterator[tuple[int, WorkloadRequest]]) -> None:
        for index, request in todo:
            traces[index] = await trace_of(stream, request)

    async with asyncio.TaskGroup() as callers:
        for _ in range(workload.concurrency):
            callers.create_task(call_in_turn(todo))
    return [traces[index] for index in range(len(workload.requests))]


async def run_open_loop(stream: Stream, arrivals: Sequence[Arrival]) -> list[RequestTrace]:
    """Send every request at its time, whatever became of the others; traces in their order."""
    start = time.perf_counter()

    async def call(arrival: Arrival) -> RequestTrace:
        await asyncio.sleep(start + arrival.at - time.perf_counter())
        return await trace_of(stream, arrival.request)

    async with asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(call(arrival)) for arrival in arrivals]
    return [task.result() for task in tasks]
