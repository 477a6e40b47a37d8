"""`polygraft serve`: a base model and its adapters over gRPC, until Ctrl-C."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.server.serve import RunningServer

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="Directory, hub id or builtin:nano (the default).")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="gRPC port, 0 for a free one; default 50051.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus port, 0 for a free one; default 9090.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16; default auto.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs: cpu (the default), cuda or cuda:N.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Where adapters are kept: a directory, s3://bucket/prefix, gs:// or az://; "
            "default .polygraft."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML or TOML file with any settings.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting: engine.max_running=16."),
    ] = None,
) -> None:
    """Serve a base model and its adapters over gRPC, until Ctrl-C or SIGTERM.

    Settings come from options, POLYGRAFT_* variables, the file of --config and defaults, in this
    order. A default port that is taken gives way to a free one; a port that was asked for does not.
    """
    overrides: dict[str, Any] = dict(_setting(text) for text in settings or ())
    options = {
        "model": model,
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "engine.dtype": dtype,
        "engine.device": device,
        "store": store,
    }
    overrides |= {key: value for key, value in options.items() if value is not None}
    _run(overrides, config)


def _run(overrides: dict[str, Any], file: Path | None) -> None:
    from polygraft.server.config import load_config

    loaded = load_config(overrides, os.environ, file)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    typer.echo(f"loading {loaded.model} ...", err=True)

    from polygraft.server.serve import serve as run

    code = run(loaded, _announce)
    if code:
        raise CommandFailed("the engine died; the log says why.", ExitCode.INTERNAL)
    typer.echo("stopped", err=True)


def _announce(server: RunningServer) -> None:
    """Print what a user needs to know of a server that answers."""
    from rich.console import Console
    from rich.table import Table

    from polygraft.adapters.stores.protocol import is_url

    geometry, config = server.engine.geometry, server.config
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for name, value in (
        ("model", f"{geometry.name}  {geometry.architecture}, {geometry.dtype}"),
        ("context", f"{server.engine.context_length} tokens"),
        ("gRPC", f"{config.host}:{server.port}" + _instead_of(config.port, server.port)),
        (
            "metrics",
            f"http://{config.metrics_host}:{server.metrics_port}/metrics"
            + _instead_of(config.metrics_port, server.metrics_port),
        ),
        ("store", config.store if is_url(config.store) else str(Path(config.store).resolve())),
        ("adapters", ", ".join(server.registry.names()) or "none yet"),
    ):
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(table)
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        console.print("[yellow]Anyone who can reach this address can use and change it.[/yellow]")
    console.print("ready; Ctrl-C stops it")


def _instead_of(asked: int, taken: int) -> str:
    return f"  ({asked} is taken)" if asked not in (0, taken) else ""


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise CommandFailed(f"--set {text} has no '='; write KEY=VALUE.", ExitCode.USAGE)
    return key, value
