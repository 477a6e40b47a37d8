"""`polygraft adapters load` and `unload`: which versions are on the device before anybody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json

if TYPE_CHECKING:
    from polygraft.client import AdapterVersion

ReferenceArgument = Annotated[str, typer.Argument(help="name, name@alias, name@7 or sha256:...")]
TimeoutOption = Annotated[float, typer.Option(min=0.001, help="Seconds to wait at most.")]


def load(
    reference: ReferenceArgument,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep it there until it is unloaded, used or not.")
    ] = False,
    timeout: TimeoutOption = 60.0,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Bring a version onto the device, so that its first request does not wait for it.

    A load that failed is tried again at once.
    """
    from polygraft.client import Client

    with Client(server) as client:
        version = client.load_adapter(reference, pin=pin, timeout=timeout)
    _show(version, ", pinned" if pin else "", as_json)


def unload(
    reference: ReferenceArgument,
    timeout: TimeoutOption = 60.0,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Take a version off device and host, and its pin, once the last request that uses it ended."""
    from polygraft.client import Client

    with Client(server) as client:
        version = client.unload_adapter(reference, timeout=timeout)
    _show(version, "", as_json)


def _show(version: AdapterVersion, mark: str, as_json: bool) -> None:
    if as_json:
        print_json(version)
        return
    typer.echo(f"{version.adapter_name}@{version.number}  {version.digest}  {version.tier}{mark}")
