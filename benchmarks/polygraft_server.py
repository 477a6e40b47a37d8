"""`polygraft serve` in a process of its own, with a store that ends with it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.server_process import ServerProcess, free_port
from polygraft.client import Client, Unavailable

START_TIMEOUT = 120.0  # seconds


class PolygraftServer:
    """A server that answers, as a context. `settings` are fields of `EngineConfig`."""

    def __init__(self, base: Path, settings: Mapping[str, str | int]) -> None:
        self._store = tempfile.TemporaryDirectory(prefix="polygraft-benchmark-")
        self.address = f"127.0.0.1:{free_port()}"
        command = serve_command(base, self.address, Path(self._store.name), settings)
        self._process = ServerProcess(command)
        try:
            self._process.wait_until(self._answers, timeout=START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def client(self) -> Client:
        """A new client of the server."""
        return Client(self.address)

    def process_ids(self) -> list[int]:
        """The server's processes."""
        return self._process.process_ids()

    def close(self) -> None:
        """Let the server drain and end, and remove its store."""
        self._process.close()
        self._store.cleanup()

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                client.model()
            except Unavailable:
                return False
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve_command(
    base: Path, address: str, store: Path, settings: Mapping[str, str | int]
) -> list[str]:
    """The command line of the server."""
    program = str(Path(sys.executable).with_name("polygraft"))
    host, _, port = address.rpartition(":")
    command = [program, "serve", "--model", str(base), "--store", str(store)]
    command += ["--host", host, "--port", port, "--metrics-port", "0"]
    return command + [f"--set=engine.{key}={value}" for key, value in settings.items()]
