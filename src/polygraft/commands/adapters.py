"""`polygraft adapters`: the adapters of a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands import aliases, gate, residency, transfer
from polygraft.commands.adapter_check import check
from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from polygraft.client import Adapter, AdapterVersion

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.command()(transfer.download)
app.command()(transfer.export)
app.command("import")(transfer.import_version)
app.command()(check)
for command in (
    aliases.promote,
    gate.gate,
    aliases.rollback,
    aliases.history,
    aliases.watch,
    residency.load,
    residency.unload,
):
    app.command()(command)

LIVE = "live"
_WHOLE = ("base", "numbers")


@app.callback()
def adapters() -> None:
    """List, show, push, check, gate, promote, roll back, load, download and delete adapters."""


@app.command("list")
def list_adapters(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Show every adapter with its live version."""
    from polygraft.client import Client

    with Client(server) as client:
        found = client.list_adapters()
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("no adapters yet; `polygraft adapters push DIR NAME` publishes one", err=True)
        return
    table = _table(
        "name", "live", "kind", "base", "numbers", "versions", "aliases", "where", "size"
    )
    for adapter in found:
        version = adapter.version
        pointers = ", ".join(f"{a.alias}={aliases.short_targets(a)}" for a in adapter.aliases)
        facts = _facts(version) if version else ("-",) * 6
        number, kind, base, proof, where, size = facts
        count = str(adapter.num_versions)
        table.add_row(adapter.name, number, kind, base, proof, count, pointers, where, size)
    _print(table)


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="name, name@alias, name@7 or sha256:...")],
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Show one adapter: aliases, versions, prompt variables, scores."""
    from polygraft.client import Client

    with Client(server) as client:
        adapter = client.get_adapter(reference)
        versions = client.list_versions(adapter.name)
    if as_json:
        manifest = json.loads(adapter.version.manifest_json) if adapter.version else None
        print_json([adapter, *versions, manifest])
        return
    _print_adapter(adapter)
    table = _table("version", "kind", "base", "numbers", "where", "size", "published", "digest")
    for version in versions:
        number, kind, base, proof, where, size = _facts(version)
        when = version.created_at.strftime("%Y-%m-%d %H:%M")
        table.add_row(number, kind, base, proof, where, size, when, version.digest[:19])
    _print(table)


@app.command()
def push(
    source: Annotated[Path, typer.Argument(help="A PEFT directory or a run of the trainer.")],
    name: Annotated[
        str | None, typer.Argument(help="Name to publish under; default the directory's.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the live version.")] = False,
    alias: Annotated[str, typer.Option(help="Move this alias to the new version.")] = "",
    require_verified: Annotated[
        bool, typer.Option(help="Refuse files that do not say which base they were made for.")
    ] = False,
    allow_no_effect: Annotated[
        bool, typer.Option(help="Accept a LoRA that changes nothing.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Upload an adapter as a new version.

    A plain PEFT directory does not name its base: it is checked by shapes and values and shown as
    UNVERIFIED. Without the trainer's probes the server can compare one layer with PEFT's formula
    only, and shows it as UNPROVEN.
    """
    if not source.is_dir():
        raise CommandFailed(f"{source} is not a directory.", ExitCode.USAGE)
    if promote and alias not in ("", LIVE):
        raise CommandFailed("--promote moves live; give it or --alias, not both.", ExitCode.USAGE)
    from polygraft.adapters.names import NAME

    if name is None and not NAME.fullmatch(source.resolve().name):
        raise CommandFailed(
            f"the directory's name {source.resolve().name!r} is not an adapter name. "
            "Give one: polygraft adapters push DIR NAME.",
            ExitCode.USAGE,
        )
    target = LIVE if promote else alias
    published = transfer.send(
        source,
        name or source.resolve().name,
        target,
        server,
        allow_unverified_base=not require_verified,
        allow_no_effect=allow_no_effect,
    )
    transfer.print_published(published, as_json)


@app.command()
def delete(
    reference: Annotated[str, typer.Argument(help="name: all of it; name@7: one version.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Delete an adapter with all versions and aliases, or one version."""
    from polygraft.client import Client

    name, at, number = reference.partition("@")
    if at and not number.isdecimal():
        raise CommandFailed(
            f"{reference} is neither a name nor a version; write name or name@7.", ExitCode.USAGE
        )
    if not yes:
        typer.confirm(f"delete {reference}" + ("" if at else " with all its versions"), abort=True)
    with Client(server) as client:
        if at:
            client.delete_version(name, int(number))
        else:
            client.delete_adapter(name)
    typer.echo(f"deleted {reference}")


def _print_adapter(adapter: Adapter) -> None:
    typer.secho(adapter.name, bold=True)
    for alias in adapter.aliases:
        where = aliases.targets_of(alias)
        typer.echo(f"  {alias.alias} -> {where}  (generation {alias.generation})")
    version = adapter.version
    if version is None:
        return
    typer.echo(f"version {version.number}: {version.digest}")
    if version.variables:
        typer.echo(f"  prompt variables: {', '.join(version.variables)}")
    for score in json.loads(version.manifest_json).get("scores", ()):
        typer.echo(f"  {score['subject']} {score['metric']} {score['value']} on {score['split']}")


def _facts(version: AdapterVersion) -> tuple[str, ...]:
    """Number, kind with its size, whether base and numbers are known to be right, where, bytes."""
    if version.kind == "lora":
        kind = f"LoRA r={version.max_rank}"
    else:
        kind = f"{version.kind.replace('_', ' ')} x{version.virtual_tokens}"
    base = "verified" if version.verified else "[yellow]UNVERIFIED[/yellow]"
    proof = "proven" if version.proven else "[yellow]UNPROVEN[/yellow]"
    where = version.tier + (f" ({version.references} running)" if version.references else "")
    return str(version.number), kind, base, proof, where, _size(version.size_bytes)


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        # Why: on a narrow terminal the others wrap, and no warning is cut to "UNVERIF...".
        table.add_column(column, no_wrap=column in _WHOLE)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)
