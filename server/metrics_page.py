"""The page that Prometheus scrapes, on a port and threads of its own."""

from __future__ import annotations

import socket
from socketserver import ThreadingMixIn
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

_POLL_SECONDS = 0.05  # how quickly `close` is noticed


class MetricsPage:
    """Answers scrapes from construction on until `close`. Port 0 takes any free one; OSError."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        kind = _Server6 if ":" in host else _Server
        self._server = make_server(host, port, make_wsgi_app(registry), kind, _QuietHandler)
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port taken."""
        return self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not news."""
