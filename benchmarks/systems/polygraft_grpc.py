"""Polygraft as its users meet it: `polygraft serve` in a process, called by the public client.

CPU time and memory are the server's alone; the load generator's are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from benchmarks.load import run_closed_loop
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import RequestTrace, Workload, WorkloadRequest
from polygraft.client import AsyncClient


class PolygraftService:
    """A running server, and an event loop with a client of it."""

    def __init__(self, server: PolygraftServer) -> None:
        self.server = server
        self.loop = asyncio.Runner()
        self.client = self.loop.run(open_client(server.address))

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Serve the workload with `concurrency` streaming callers."""
        return self.loop.run(run_closed_loop(self._stream, workload))

    def _stream(self, request: WorkloadRequest) -> AsyncIterator[list[int]]:
        return stream(self.client, request)

    def process_ids(self) -> list[int]:
        """The server's process."""
        return self.server.process_ids()

    def close(self) -> None:
        """Disconnect, and let the server drain and end."""
        self.loop.run(self.client.close())
        self.loop.close()
        self.server.close()


async def open_client(address: str) -> AsyncClient:
    """A connected client, made inside the loop that uses it."""
    client = AsyncClient(address)
    await client.model()
    return client


async def stream(client: AsyncClient, request: WorkloadRequest) -> AsyncIterator[list[int]]:
    """Serve a request: exactly `max_output_tokens` greedy tokens, as they come."""
    pieces = client.stream(
        token_ids=request.prompt_token_ids,
        adapter=request.adapter,
        max_output_tokens=request.max_output_tokens,
        ignore_eos=True,
        return_token_ids=True,
    )
    async for piece in pieces:
        yield list(piece.token_ids)


def load(job: Job) -> PolygraftService:
    """Start a server on a free port, upload every adapter and make all resident."""
    server = PolygraftServer(job.base, engine_settings(job))
    try:
        with server.client() as client:
            for name, folder in job.adapters.items():
                client.upload_adapter(folder, name, allow_unverified_base=True)
                client.load_adapter(name)
        return PolygraftService(server)
    except BaseException:
        server.close()
        raise
