"""`polygraft adapters promote`, `rollback`, `history`, `watch`: where aliases point."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.connection import (
    DEFAULT_SERVER,
    JsonOption,
    ServerOption,
    json_text,
    print_json,
)
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.client import AdapterEvent, Alias

LIVE = "live"

AliasOption = Annotated[str, typer.Option(help="The alias to move.")]
ReasonOption = Annotated[str, typer.Option(help="Kept with the move.")]
ExpectOption = Annotated[
    int | None,
    typer.Option("--expect", "--expected-generation", help="Only if it is at this generation."),
]
NameArgument = Annotated[str, typer.Argument(help="name, or name@alias for another than live.")]


def promote(
    version: Annotated[str, typer.Argument(help="The version to point to: name@7, name@canary.")],
    alias: AliasOption = LIVE,
    weight: Annotated[
        str | None, typer.Option(help="Give it this share only, e.g. 5%, beside the one in charge.")
    ] = None,
    reason: ReasonOption = "",
    expect: ExpectOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Past the gate; the --reason is recorded.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version; running requests end on the version they began with.

    With --weight it becomes a canary: it gets that share of the requests, and the same callers
    keep it when the share grows.
    """
    from polygraft.client import Client

    share = None if weight is None else share_of(weight)
    with Client(server) as client:
        adapter = client.get_adapter(version)
        assert adapter.version is not None  # a reference names one
        number, canary = adapter.version.number, None
        if share is not None and share < 1:
            current = _current(adapter.aliases, adapter.name, alias)
            number, canary = current.number, number
            # Why: what the share is beside must be what was seen.
            expect = current.generation if expect is None else expect
        moved = client.move_alias(
            adapter.name,
            alias,
            number,
            canary=canary,
            canary_weight=share or 0.0,
            expected_generation=expect,
            reason=reason,
            force=force,
        )
    show_moved(moved, as_json)


def rollback(
    name: NameArgument,
    to: Annotated[
        int, typer.Option(help="A generation of `history`. Default: the last whole version.")
    ] = 0,
    reason: ReasonOption = "",
    expect: ExpectOption = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Point an alias back to what it pointed to before, at once."""
    from polygraft.client import Client

    name, alias = split_name(name)
    with Client(server) as client:
        moved = client.rollback_alias(
            name, alias, generation=to, expected_generation=expect, reason=reason
        )
    show_moved(moved, as_json)


def history(
    name: NameArgument, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False
) -> None:
    """Show all moves of an alias, the newest first: who, when, why, on what scores."""
    from rich.console import Console
    from rich.table import Table

    from polygraft.client import Client

    name, alias = split_name(name)
    with Client(server) as client:
        moves = client.alias_history(name, alias)
    if as_json:
        print_json(moves)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("generation", "points to", "when (UTC)", "by", "gate", "reason"):
        table.add_column(column)
    for move in moves:
        when = f"{move.moved_at:%Y-%m-%d %H:%M:%S}"
        row = (str(move.generation), targets_of(move), when, move.moved_by, _gate_of(move))
        table.add_row(*row, move.reason)
    Console().print(table)


def watch(
    name: Annotated[str, typer.Argument(help="An adapter; all without it.")] = "",
    cursor: Annotated[str, typer.Option(help="Go on behind this place.")] = "",
    loads: Annotated[bool, typer.Option("--loads", help="Loads and evictions, too.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Show what happens to adapters, as it happens; Ctrl-C ends it."""
    from polygraft.client import Client

    with (
        Client(server) as client,
        client.watch(name, cursor=cursor, include_residency=loads) as events,
    ):
        for event in events:
            typer.echo(json_text(event) if as_json else _line_of(event))


def show_moved(moved: Alias, as_json: bool) -> None:
    """What a move came to."""
    if as_json:
        print_json(moved)
        return
    where = f"{moved.adapter_name}@{moved.alias}"
    typer.echo(f"{where} -> {targets_of(moved)}  (generation {moved.generation})")


def targets_of(alias: Alias) -> str:
    """The versions with their shares, as one word or two."""
    if alias.canary is None:
        return str(alias.number) if alias.number else "nothing"
    return ", ".join(f"{target.number} ({100 * target.weight:g}%)" for target in alias.targets)


def short_targets(alias: Alias) -> str:
    """For tables: "1", or "1+2" with a canary."""
    return "+".join(str(target.number) for target in alias.targets)


def split_name(text: str) -> tuple[str, str]:
    """Name and alias of "name" or "name@alias"."""
    name, _, alias = text.partition("@")
    return name, alias or LIVE


def share_of(text: str) -> float:
    """0.05 for "5%"; CommandFailed for what is no share."""
    number = text.removesuffix("%")
    try:
        share = float(number) / (100 if number != text else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise CommandFailed(
            f"--weight {text} is no share; write 5% or 0.05, above 0 and at most 100%.",
            ExitCode.USAGE,
        )
    return share


def _current(aliases: tuple[Alias, ...], name: str, alias: str) -> Alias:
    for known in aliases:
        if known.alias == alias:
            return known
    raise CommandFailed(
        f"{name}@{alias} points to nothing yet, so there is nothing to share with; "
        "leave --weight out.",
        ExitCode.USAGE,
    )


def _gate_of(move: Alias) -> str:
    verdict = move.verdict
    mark = "forced" if move.forced else f"rollback to {move.restored}" if move.restored else "-"
    if verdict is None:
        return mark
    outcome = mark if move.forced else "passed" if verdict.passed else "failed"
    return f"{outcome}: {verdict.metric} {verdict.delta:+.2f} on {verdict.rows} rows"


def _line_of(event: AdapterEvent) -> str:
    what = event.kind.replace("_", " ")
    where = event.adapter_name or event.digest[:19]
    if event.alias is not None:
        where = f"{event.alias.adapter_name}@{event.alias.alias} -> {targets_of(event.alias)}"
    elif event.number:
        where = f"{event.adapter_name}@{event.number}"
    parts = [f"{event.at:%H:%M:%S}", what, where, event.tier, event.detail, event.cursor]
    return "  ".join(part for part in parts if part)
