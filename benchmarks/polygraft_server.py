"""`polygraft serve` in a process of its own, with a store that ends with it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.server_process import ServerProcess, free_port
from polygraft.client import Client, Unavailable

START_TIMEOUT = 120.0  # seconds


class PolygraftServer:
    """A server that answers, as a context. `settings` are fields of `EngineConfig`.

    `host_bytes`: memory for adapters beside the device; None leaves the default. `copy_of`: a store
    that the server's own is a copy of at first, by links, so both lie on one file system.
    """

    def __init__(
        self,
        base: Path,
        settings: Mapping[str, str | int],
        *,
        host_bytes: int | None = None,
        copy_of: Path | None = None,
    ) -> None:
        folder = None if copy_of is None else copy_of.parent
        self._store = tempfile.TemporaryDirectory(prefix="polygraft-benchmark-", dir=folder)
        if copy_of is not None:
            shutil.copytree(copy_of, Path(self._store.name) / "store", copy_function=os.link)
        self.address = f"127.0.0.1:{free_port()}"
        self._metrics_port = free_port()
        store = Path(self._store.name)
        command = serve_command(base, self.address, self._metrics_port, store, settings)
        if host_bytes is not None:
            command.append(f"--set=adapters.host_bytes={host_bytes}")
        self._process = ServerProcess(command)
        try:
            self._process.wait_until(self._answers, timeout=START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def publish(self, adapters: Mapping[str, Path], *, load: bool, pin: bool = False) -> None:
        """Upload adapters under their names; with `load` they are then on the device, where they
        stay as long as there is room, with `pin` in any case. Half of the rows can be pinned.
        """
        with self._client() as client:
            for name, folder in adapters.items():
                client.upload_adapter(folder, name, allow_unverified_base=True)
                if load:
                    client.load_adapter(name, pin=pin)

    def make_cold(self, names: Iterable[str]) -> None:
        """Leave these adapters in the store alone: not on the device, host, or in page cache."""
        with self._client() as client:
            for name in names:
                client.unload_adapter(name)
        for path in Path(self._store.name).rglob("*"):
            if path.is_file():
                drop_from_page_cache(path)

    def metrics(self) -> dict[str, float]:
        """Every sample of the metrics page, by name and labels as they stand there."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def process_ids(self) -> list[int]:
        """The server's processes."""
        return self._process.process_ids()

    def close(self) -> None:
        """Let the server drain and end, and remove its store."""
        self._process.close()
        self._store.cleanup()

    def _client(self) -> Client:
        return Client(self.address)

    def _answers(self) -> bool:
        with self._client() as client:
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


def drop_from_page_cache(path: Path) -> None:
    """Advise the kernel to forget the file, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # only what is written back can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def serve_command(
    base: Path, address: str, metrics_port: int, store: Path, settings: Mapping[str, str | int]
) -> list[str]:
    """The command line of the server."""
    program = str(Path(sys.executable).with_name("polygraft"))
    host, _, port = address.rpartition(":")
    command = [program, "serve", "--model", str(base), "--store", str(store)]
    command += ["--host", host, "--port", port, "--metrics-port", str(metrics_port)]
    return command + [f"--set=engine.{key}={value}" for key, value in settings.items()]
