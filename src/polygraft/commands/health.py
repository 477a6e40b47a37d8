"""`polygraft health`: is a server ready? For container probes; asks `grpc.health.v1`."""

from __future__ import annotations

from typing import Annotated

import typer

from polygraft.commands.connection import DEFAULT_SERVER, ServerOption
from polygraft.commands.failure import CommandFailed, ExitCode

app = typer.Typer(add_completion=False)


@app.command()
def health(
    server: ServerOption = DEFAULT_SERVER,
    service: Annotated[str, typer.Option(help="Service to ask for; empty: the server.")] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Ask a server whether it is ready; the exit code is 0 only for SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as error:
            raise CommandFailed(
                f"{server} did not answer the health check: {error.code().name}: "
                f"{error.details()}. Is `polygraft serve` running there?",
                ExitCode.UNREACHABLE,
            ) from error
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise CommandFailed(
            f"{server} is {state}: starting, draining or failed", ExitCode.UNREACHABLE
        )
    typer.echo(state)
