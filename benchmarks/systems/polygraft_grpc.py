"""Polygraft as its users meet it: `polygraft serve` in a process, called by the public client.

CPU time and memory are the server's alone; the load generator's are left out.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import RequestTrace, Workload, WorkloadRequest
from polygraft.client import AsyncClient, Client, Unavailable

START_TIMEOUT = 120.0  # seconds


class PolygraftServer:
    """A running server, and an event loop with a client of it."""

    def __init__(
        self,
        server: subprocess.Popen[bytes],
        address: str,
        store_folder: tempfile.TemporaryDirectory[str],
    ) -> None:
        self.server = server
        self.store_folder = store_folder
        self.loop = asyncio.Runner()
        self.client = self.loop.run(open_client(address))

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Serve the workload with `concurrency` streaming callers."""
        return self.loop.run(self._run(workload))

    async def _run(self, workload: Workload) -> list[RequestTrace]:
        traces: dict[int, RequestTrace] = {}
        todo = iter(enumerate(workload.requests))
        async with asyncio.TaskGroup() as callers:
            for _ in range(workload.concurrency):
                callers.create_task(self._call_in_turn(todo, traces))
        return [traces[index] for index in range(len(workload.requests))]

    async def _call_in_turn(
        self, todo: Iterator[tuple[int, WorkloadRequest]], traces: dict[int, RequestTrace]
    ) -> None:
        for index, request in todo:
            trace = traces[index] = RequestTrace(submitted=time.perf_counter())
            stream = self.client.stream(
                token_ids=request.prompt_token_ids,
                adapter=request.adapter,
                max_output_tokens=request.max_output_tokens,
                ignore_eos=True,
                return_token_ids=True,
            )
            async for piece in stream:
                trace.record(list(piece.token_ids), time.perf_counter())

    def process_ids(self) -> list[int]:
        """The server's process."""
        return [self.server.pid]

    def close(self) -> None:
        """Disconnect, and let the server drain and end."""
        self.loop.run(self.client.close())
        self.loop.close()
        stop(self.server)
        self.store_folder.cleanup()


async def open_client(address: str) -> AsyncClient:
    """A connected client, made inside the loop that uses it."""
    client = AsyncClient(address)
    await client.model()
    return client


def load(job: Job) -> PolygraftServer:
    """Start a server on a free port, upload every adapter and make all resident."""
    store_folder = tempfile.TemporaryDirectory(prefix="polygraft-benchmark-")
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(serve_command(job, address, Path(store_folder.name)))
    try:
        with Client(address) as client:
            wait_until_ready(client, server)
            for name, folder in job.adapters.items():
                client.upload_adapter(folder, name, allow_unverified_base=True)
                client.load_adapter(name)
    except BaseException:
        stop(server)
        raise
    return PolygraftServer(server, address, store_folder)


def serve_command(job: Job, address: str, store: Path) -> list[str]:
    """The command line of the server."""
    program = str(Path(sys.executable).with_name("polygraft"))
    settings = [f"--set=engine.{key}={value}" for key, value in engine_settings(job).items()]
    port = address.rpartition(":")[2]
    ports = ["--port", port, "--metrics-port", "0"]
    return [program, "serve", "--model", str(job.base), "--store", str(store), *ports, *settings]


def wait_until_ready(client: Client, server: subprocess.Popen[bytes]) -> None:
    """Block until the server answers; RuntimeError if it ends instead."""
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None:
        try:
            client.model()
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    raise RuntimeError(f"the server ended with exit code {server.returncode}")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL if it does not end."""
    server.terminate()
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
