"""Taking a port to listen on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Literal

from polygraft.server.config import ConfigError, ServerConfig

Bind = Callable[[str, int], int]


def take_port(bind: Bind, config: ServerConfig, setting: Literal["port", "metrics_port"]) -> int:
    """The port taken: the configured one, or any free one if that is taken but only a default.

    `bind(host, port)` takes a port and returns it, or raises OSError. Raises ConfigError.
    """
    host = config.host if setting == "port" else config.metrics_host
    port: int = getattr(config, setting)
    try:
        check_free(host, port)
        return bind(host, port)
    except OSError as error:
        if setting in config.model_fields_set:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror or error}).",
                item=setting,
                found=port,
                hint="Choose another port, or 0 for any free one.",
            ) from error
    try:
        return bind(host, 0)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} ({error}).", item="host") from error


def check_free(host: str, port: int) -> None:
    """OSError if the port is taken. Why: gRPC says so only in a log of its own."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
