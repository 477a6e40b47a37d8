"""`polygraft store`: looking after the place where adapters are kept, with or without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from polygraft.adapters.garbage import GarbageReport

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def store() -> None:
    """Look after the place where adapters are kept."""


@app.command()
def gc(
    store: Annotated[
        str | None,
        typer.Option(help="Directory or URL, as for `polygraft serve`; default .polygraft."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    min_age: Annotated[
        float, typer.Option(min=0, help="Hours that a file must be unreferenced.")
    ] = 24.0,
    keep: Annotated[int, typer.Option(min=1, help="Moves that each alias keeps.")] = 10,
    config: Annotated[
        Path | None, typer.Option(help="YAML or TOML file with the server's settings.")
    ] = None,
) -> None:
    """Delete files that no version needs any more, and old moves of aliases.

    A file goes in the second run that finds it unreferenced, `--min-age` hours after the first.
    Servers may run meanwhile. Run one of these at a time.
    """
    from polygraft.adapters.garbage import GarbageCollector
    from polygraft.server.config import load_config
    from polygraft.server.stores import visit_store

    settings = load_config({} if store is None else {"store": store}, os.environ, config)
    with visit_store(settings) as visited:
        collector = GarbageCollector(visited, min_age=min_age * 3600.0, kept_generations=keep)
        _print(collector.collect(dry_run=dry_run))


def _print(report: GarbageReport) -> None:
    would = "would free" if report.dry_run else "freed"
    typer.echo(f"{would} {report.num_bytes} bytes in {len(report.deleted)} files")
    if report.waiting:
        typer.echo(f"{report.waiting} more are not referenced, but not for long enough")
    if report.spared:
        typer.echo(f"{len(report.spared)} were published again just now, and stay")
    if report.pruned_generations:
        what = "would remove" if report.dry_run else "removed"
        typer.echo(f"{what} {report.pruned_generations} old moves of aliases")
