"""Servers for tests: everything real but the engine, on free ports of 127.0.0.1."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from adapter_support.directories import lora_tensors, write_adapter
from prometheus_client import CollectorRegistry

from polygraft.adapters.files import find_files, hash_file
from polygraft.adapters.manifest import FileRecord, Manifest
from polygraft.adapters.registry import VersionRecord
from polygraft.adapters.validation_process import ValidationProcess
from polygraft.client import AsyncClient
from polygraft.client.retry import NO_RETRY
from polygraft.server.config import ServerConfig
from polygraft.server.serve import RunningServer, run_server
from server_support.fake_engine import FakeEngine

T = TypeVar("T")

DSUM_RECIPE: Mapping[str, Any] = {
    "segments": [{"text": "Summarize: "}, {"var": "dialogue"}, {"text": "\nSummary:"}],
    "stop_sequences": ["\n\n"],
    "defaults": {"temperature": "0.5", "max_output_tokens": "40"},
}


@dataclass
class Service:
    """A running server with its fake engine, and a client that does not try again."""

    server: RunningServer
    engine: FakeEngine
    client: AsyncClient

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    def metrics(self) -> CollectorRegistry:
        """What Prometheus would scrape."""
        return self.server.metrics.registry

    def publish(
        self, name: str, folder: Path, *, recipe: Mapping[str, Any] | None = None, seed: int = 0
    ) -> VersionRecord:
        """A verified version of a LoRA, with a recipe if one is given."""
        return publish(self.server, name, folder, recipe=recipe, seed=seed)


@cache
def shared_validation() -> ValidationProcess:
    """One process for all servers of a test run: starting it takes longer than most tests."""
    process = ValidationProcess()
    atexit.register(process.close)
    return process


@asynccontextmanager
async def running_service(
    store: Path | str, *, engine: FakeEngine | None = None, **settings: Any
) -> AsyncIterator[Service]:
    """A service on this loop. At the end nothing of any request may be left."""
    engine = engine or FakeEngine()
    config = ServerConfig(**{"store": store, "port": 0, "metrics_port": 0, **settings})
    load, validation = cast(Any, engine.load), shared_validation()
    async with run_server(config, load=load, validation=validation) as server:
        async with AsyncClient(f"127.0.0.1:{server.port}", timeout=10, retry=NO_RETRY) as client:
            yield Service(server, engine, client)
        await until_idle(server)
        server.check_integrity()


async def until_idle(server: RunningServer, seconds: float = 2.0) -> None:
    """Wait until the ledger is empty; AssertionError shows what is left."""
    deadline = time.monotonic() + seconds
    while any(server.ledger().values()) and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    assert not any(server.ledger().values()), server.ledger()


@contextmanager
def service_in_thread(store: Path, **settings: Any) -> Iterator[Service]:
    """A service on a loop of its own, for synchronous clients and commands."""
    with in_thread(lambda: running_service(store, **settings)) as service:
        yield service


@contextmanager
def in_thread(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """What an asynchronous context gives, alive on the loop of another thread."""
    loop, made = asyncio.new_event_loop(), Future[T]()
    stop = asyncio.Event()

    async def run() -> None:
        try:
            async with make() as value:
                made.set_result(value)
                await stop.wait()
        except Exception as error:
            if made.done():
                raise
            made.set_exception(error)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        yield made.result(timeout=60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def publish(
    server: RunningServer,
    name: str,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> VersionRecord:
    """A version of a LoRA that names the server's base."""
    files = find_files(write_adapter(folder, tensors=lora_tensors(seed=seed)))
    manifest = manifest_of(server, files, recipe)
    return server.registry.publish(name, manifest, files)


def manifest_of(
    server: RunningServer, files: Mapping[str, Path], recipe: Mapping[str, Any] | None
) -> Manifest:
    """As the trainer writes it."""
    fingerprint = server.engine.geometry.fingerprint
    records = [
        FileRecord(name=file, size=path.stat().st_size, sha256=hash_file(path))
        for file, path in sorted(files.items())
    ]
    return Manifest.model_validate(
        {
            "schema": "polygraft.adapter/1",
            "kind": "lora",
            "files": tuple(records),
            "format": {"peft_type": "LORA", "max_rank": 2, "tensor_count": 2},
            "base": {
                "name": "paper",
                "weights_sha256": fingerprint.weights_sha256,
                "config_sha256": fingerprint.config_sha256,
                "declared": True,
            },
            "tokenizer": {"behaviour_sha256": fingerprint.tokenizer_sha256},
            "prompt": recipe,
        },
        strict=False,
    )
