"""`polygraft health` against a real gRPC server that holds only the health service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from polygraft.cli import app

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def address(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


def test_health_succeeds_when_the_server_is_serving(
    servicer: health.HealthServicer, address: str
) -> None:
    servicer.set("", SERVING)
    result = CliRunner().invoke(app, ["health", "--server", address])
    assert (result.exit_code, result.stdout) == (0, "SERVING\n")


def test_health_fails_while_the_server_is_draining(
    servicer: health.HealthServicer, address: str
) -> None:
    servicer.set("", NOT_SERVING)
    result = CliRunner().invoke(app, ["health", "--server", address])
    assert result.exit_code == 6
    assert "NOT_SERVING" in result.stderr


def test_health_fails_for_a_service_that_the_server_does_not_have(address: str) -> None:
    result = CliRunner().invoke(app, ["health", "--server", address, "--service", "no.such"])
    assert result.exit_code == 6
    assert "NOT_FOUND" in result.stderr


def test_health_names_the_address_where_nobody_listens() -> None:
    result = CliRunner().invoke(app, ["health", "--server", "127.0.0.1:1", "--timeout", "0.5"])
    assert result.exit_code == 6
    assert "127.0.0.1:1" in result.stderr
