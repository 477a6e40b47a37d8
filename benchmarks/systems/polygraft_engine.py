"""Polygraft's engine in this process: registry, residency and continuous batching, but no gRPC."""

from __future__ import annotations

import os
import time
from itertools import count
from queue import SimpleQueue

from benchmarks.prepared_engine import PreparedEngine
from benchmarks.systems import Job
from benchmarks.workload import RequestTrace, Workload
from polygraft.server.engine.messages import SequenceOutput


class PolygraftEngine:
    """An engine whose outputs are consumed by the thread that submits, as a server's loop does."""

    def __init__(self, prepared: PreparedEngine) -> None:
        self.prepared = prepared
        self._outputs: SimpleQueue[tuple[float, list[SequenceOutput]]] = SimpleQueue()
        self._request_ids = map(str, count())
        prepared.engine.start(
            prepared.residency, lambda outputs: self._outputs.put((time.perf_counter(), outputs))
        )

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Keep `concurrency` requests in flight until all are done."""
        traces: dict[str, RequestTrace] = {}  # request id to trace, in the order of submission
        todo = list(reversed(workload.requests))
        num_running = 0
        while todo or num_running:
            while todo and num_running < workload.concurrency:
                request_id = next(self._request_ids)
                traces[request_id] = RequestTrace(submitted=time.perf_counter())
                self.prepared.submit(request_id, todo.pop())
                num_running += 1
            now, outputs = self._outputs.get()
            for output in outputs:
                if output.error is not None:
                    raise output.error
                traces[output.request_id].record(list(output.token_ids), now)
                num_running -= output.is_final
        return list(traces.values())

    def process_ids(self) -> list[int]:
        """This process."""
        return [os.getpid()]

    def close(self) -> None:
        """Stop the engine thread and the loaders; remove the store."""
        self.prepared.close()


def load(job: Job) -> PolygraftEngine:
    """Load the base and make every adapter resident."""
    return PolygraftEngine(PreparedEngine(job))
