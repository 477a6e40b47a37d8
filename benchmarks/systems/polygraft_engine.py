"""Polygraft's engine in this process: registry, residency and continuous batching, but no gRPC."""

from __future__ import annotations

import os
import tempfile
import time
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import BASE, RequestTrace, Workload, WorkloadRequest
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import minimal_manifest, record_files
from polygraft.adapters.registry import Registry
from polygraft.adapters.residency import Residency
from polygraft.adapters.store import LocalStore
from polygraft.adapters.weights import read_adapter
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    SequenceOutput,
    Stopping,
)

LOAD_TIMEOUT = 60.0  # seconds


class PolygraftEngine:
    """An engine whose outputs are consumed by the thread that submits, as a server's loop does."""

    def __init__(
        self,
        engine: Engine,
        residency: Residency,
        digests: dict[str, str],
        store_folder: tempfile.TemporaryDirectory[str],
    ) -> None:
        self.engine = engine
        self.residency = residency
        self.digests = digests  # adapter name to version
        self.store_folder = store_folder
        self._outputs: SimpleQueue[tuple[float, list[SequenceOutput]]] = SimpleQueue()
        self._request_ids = map(str, count())
        engine.start(residency, lambda outputs: self._outputs.put((time.perf_counter(), outputs)))

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Keep `concurrency` requests in flight until all are done."""
        traces: dict[str, RequestTrace] = {}  # request id to trace, in the order of submission
        todo = list(reversed(workload.requests))
        num_running = 0
        while todo or num_running:
            while todo and num_running < workload.concurrency:
                self._submit(todo.pop(), traces)
                num_running += 1
            now, outputs = self._outputs.get()
            for output in outputs:
                if output.error is not None:
                    raise output.error
                traces[output.request_id].record(list(output.token_ids), now)
                num_running -= output.is_final
        return list(traces.values())

    def _submit(self, request: WorkloadRequest, traces: dict[str, RequestTrace]) -> None:
        request_id = next(self._request_ids)
        digests = [] if request.adapter == BASE else [self.digests[request.adapter]]
        traces[request_id] = RequestTrace(submitted=time.perf_counter())
        for digest in digests:
            self.residency.acquire(digest)
        self.engine.submit(
            EngineRequest(
                request_id=request_id,
                prompt_token_ids=request.prompt_token_ids,
                stopping=Stopping(max_output_tokens=request.max_output_tokens),
                adapters=tuple(map(AdapterShare, digests)),
            )
        )

    def process_ids(self) -> list[int]:
        """This process."""
        return [os.getpid()]

    def close(self) -> None:
        """Stop the engine thread and the loaders; remove the store."""
        self.engine.stop()
        self.residency.close()
        self.store_folder.cleanup()


def load(job: Job) -> PolygraftEngine:
    """Load the base, publish every adapter into a store of its own, and make all resident."""
    limits = AdapterLimits()
    engine = Engine.load(job.base, EngineConfig.model_validate(engine_settings(job)))
    store_folder = tempfile.TemporaryDirectory(prefix="polygraft-benchmark-")
    registry = Registry(LocalStore(Path(store_folder.name)))
    dtype = engine.base.dtype

    digests = {}
    for name, folder in job.adapters.items():
        files = find_files(folder)
        weights = read_adapter(files, engine.geometry, limits, dtype=dtype)
        manifest = minimal_manifest(files, weights, record_files(files))
        digests[name] = registry.publish(name, manifest, files).digest

    residency = Residency(
        lambda digest: read_adapter(registry.files(digest), engine.geometry, limits, dtype=dtype),
        engine.bank,
        host_bytes=1 << 30,
        on_change=engine.wake,
        observer=None,
    )
    system = PolygraftEngine(engine, residency, digests, store_folder)
    for digest in digests.values():
        residency.load(digest, timeout=LOAD_TIMEOUT)
    return system
