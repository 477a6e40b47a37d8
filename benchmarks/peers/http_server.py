"""A peer that serves HTTP: the `System` made of its process and of how it streams a request."""

from __future__ import annotations

import asyncio

from benchmarks.load import Stream, run_closed_loop
from benchmarks.server_process import ServerFailed, ServerProcess
from benchmarks.workload import RequestTrace, Workload


class HttpServer:
    """Keeps the callers' event loop in this process and the server in its own."""

    def __init__(self, server: ServerProcess, stream: Stream) -> None:
        self.server = server
        self.stream = stream
        self.loop = asyncio.Runner()

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Serve the workload with `concurrency` streaming callers.

        ServerFailed, with the end of the server's log, when a request is not served.
        """
        try:
            return self.loop.run(run_closed_loop(self.stream, workload))
        except ExceptionGroup as failures:
            raise ServerFailed(f"{failures.exceptions[0]!r}:\n{self.server.log()}") from failures

    def process_ids(self) -> list[int]:
        """The server's processes."""
        return self.server.process_ids()

    def close(self) -> None:
        """End the server."""
        self.loop.close()
        self.server.close()
