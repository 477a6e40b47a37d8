"""An engine in this process with every adapter resident, for whoever runs or steps it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import BASE, WorkloadRequest
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import minimal_manifest, record_files
from polygraft.adapters.registry import Registry
from polygraft.adapters.residency import Residency
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.weights import read_adapter
from polygraft.kernels.linear import WeightFormat
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.messages import AdapterShare, EngineRequest, Stopping

LOAD_TIMEOUT = 60.0  # seconds


class PreparedEngine:
    """The base loaded and every adapter published into a store of its own and made resident.

    The engine is neither started nor attached. `close` stops it, started or not.
    """

    def __init__(
        self,
        job: Job,
        weight_format: WeightFormat = "packed",
        other_settings: Mapping[str, object] | None = None,
    ) -> None:
        limits = AdapterLimits()
        settings = {
            **engine_settings(job),
            "weight_format": weight_format,
            **(other_settings or {}),
        }
        self.engine = Engine.load(job.base, EngineConfig.model_validate(settings))
        self._store = tempfile.TemporaryDirectory(prefix="polygraft-benchmark-")
        registry = Registry(LocalStore(Path(self._store.name)))
        geometry, dtype = self.engine.geometry, self.engine.base.dtype

        self.digests: dict[str, str] = {}  # adapter name to version
        for name, folder in job.adapters.items():
            files = find_files(folder)
            weights = read_adapter(files, geometry, limits, dtype=dtype)
            manifest = minimal_manifest(files, weights, record_files(files))
            self.digests[name] = registry.publish(name, manifest, files).digest

        self.residency = Residency(
            lambda digest: read_adapter(registry.files(digest), geometry, limits, dtype=dtype),
            self.engine.bank,
            host_bytes=1 << 30,
            on_change=self.engine.wake,
            observer=None,
        )
        for digest in self.digests.values():
            self.residency.load(digest, timeout=LOAD_TIMEOUT)

    def submit(self, request_id: str, request: WorkloadRequest) -> None:
        """Hand a request to the engine, with the reference that it needs."""
        digests = [] if request.adapter == BASE else [self.digests[request.adapter]]
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

    def close(self) -> None:
        """Stop engine and loaders; remove the store."""
        self.engine.stop()
        self.residency.close()
        self._store.cleanup()
