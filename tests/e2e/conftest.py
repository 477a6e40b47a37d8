"""A whole server in this process: tiny llama base, real engine, real gRPC, real store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_support.architectures import SERVED
from engine_support.peft_adapters import save_adapters
from server_support.service import in_thread
from tiny_models import byte_tokenizer, save_base

from polygraft.client import AsyncClient, Client
from polygraft.server.config import ServerConfig
from polygraft.server.serve import RunningServer, run_server


@dataclass(frozen=True)
class Saved:
    """Directories of a base and of adapters that peft saved for it, by name."""

    base: Path
    adapters: dict[str, Path]


@dataclass(frozen=True)
class Served:
    """A running server and a client of it."""

    server: RunningServer
    client: AsyncClient
    saved: Saved

    async def push(self, name: str, directory: Path, **options: object) -> None:
        await self.client.upload_adapter(directory, name, allow_unverified_base=True, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("e2e")
    case = SERVED["llama"]
    base = save_base(directory / "base", case.build(), byte_tokenizer())
    return Saved(base, save_adapters(base, directory, case.names))


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server with the bundled base, which computes in float32."""
    config = ServerConfig.model_validate(
        {
            "port": 0,
            "metrics_port": 0,
            "store": tmp_path_factory.mktemp("nano") / "store",
            "engine": {"dtype": "float32", "threads": 1, "kv_bytes": 1 << 26, "pool_rows": 64},
        }
    )
    with in_thread(lambda: run_server(config)) as server:
        with Client(f"127.0.0.1:{server.port}", timeout=30) as client:
            yield client
        server.check_integrity()


@pytest.fixture
async def served(saved: Saved, tmp_path: Path) -> AsyncIterator[Served]:
    config = ServerConfig.model_validate(
        {
            "model": str(saved.base),
            "port": 0,
            "metrics_port": 0,
            "store": tmp_path / "store",
            "engine": {
                "dtype": "float32",
                "threads": 1,
                "kv_bytes": 1 << 24,
                "pool_rows": 128,
                "max_running": 16,
            },
        }
    )
    async with (
        run_server(config) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        yield Served(server, client, saved)
