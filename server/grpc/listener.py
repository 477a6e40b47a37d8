"""The gRPC server: its options, its port, its health. What it serves is handed to it."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as aio_health
from grpc_reflection.v1alpha import reflection

from polygraft.adapters.errors import PolygraftError
from polygraft.protos import (
    adapters_pb2,
    adapters_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
)
from polygraft.server.grpc.adapters import AdapterServicer
from polygraft.server.grpc.boundary import Boundary
from polygraft.server.grpc.generation import GenerationServicer
from polygraft.server.metrics import Metrics

OWN_SERVICES = (
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
)

_MINUTE_MS = 60_000


class Listener:
    """One gRPC server. Bind it early, so that a taken port is met before a model is loaded.

    `max_rpcs` is a fuse behind the engine's own caps; it counts every call.
    """

    def __init__(self, metrics: Metrics, *, max_message_bytes: int, max_rpcs: int) -> None:
        self._boundary = Boundary(metrics)
        self._health = aio_health.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[self._boundary],
            options=_options(max_message_bytes),
            maximum_concurrent_rpcs=max_rpcs,
        )

    def bind(self, host: str, port: int) -> int:
        """Take a port, 0 for any free one, and return it. Raises OSError."""
        literal = f"[{host}]" if ":" in host else host
        try:
            return self._server.add_insecure_port(f"{literal}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from error

    async def start(self, generation: GenerationServicer, adapters: AdapterServicer) -> None:
        """Answer calls. Health says NOT_SERVING until `set_serving`."""
        # The generated registration functions have no annotations.
        add_generation: Any = generation_pb2_grpc.add_GenerationServiceServicer_to_server
        add_adapters: Any = adapters_pb2_grpc.add_AdapterServiceServicer_to_server
        add_generation(generation, self._server)
        add_adapters(adapters, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*OWN_SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, is_serving: bool) -> None:
        """What grpc.health.v1 says, of the server and of each of our services."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *OWN_SERVICES):
            await self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)

    def refuse_new(self, error: PolygraftError) -> None:
        """Answer every new call of our services with `error`."""
        self._boundary.refuse_new(error)

    async def stop(self, grace: float) -> None:
        """Stop listening; calls that run have `grace` seconds."""
        await self._server.stop(grace)


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.so_reuseport", 0),  # else two servers share a port without a word
        # Clients may ping every 10 s. Why this name: min_recv_ping_interval_without_data_ms, as it
        # is often spelled, is ignored and such clients are cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        # Our own pings find peers that vanished without closing their connection.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.max_connection_age_ms", 30 * _MINUTE_MS),
        ("grpc.max_connection_age_grace_ms", 15 * _MINUTE_MS),  # longer than a client's stream
    ]
