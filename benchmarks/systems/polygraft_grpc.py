"""Polygraft as its users meet it: `polygraft serve` in a process, called by the public client.

CPU time and memory are the server's alone; the load generator's are left out.
"""

from __future__ import annotations

import asyncio

from benchmarks.load import run_closed_loop
from benchmarks.polygraft_client import open_client, stream_by
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import RequestTrace, Workload


class PolygraftService:
    """A running server, and an event loop with a client of it."""

    def __init__(self, server: PolygraftServer) -> None:
        self.server = server
        self.loop = asyncio.Runner()
        self.client = self.loop.run(open_client(server.address))

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Serve the workload with `concurrency` streaming callers."""
        return self.loop.run(run_closed_loop(stream_by(self.client), workload))

    def process_ids(self) -> list[int]:
        """The server's process."""
        return self.server.process_ids()

    def close(self) -> None:
        """Disconnect, and let the server drain and end."""
        self.loop.run(self.client.close())
        self.loop.close()
        self.server.close()


def load(job: Job) -> PolygraftService:
    """Start a server on a free port, upload every adapter and make all resident."""
    server = PolygraftServer(job.base, engine_settings(job))
    try:
        server.publish(job.adapters, load=True)
        return PolygraftService(server)
    except BaseException:
        server.close()
        raise
