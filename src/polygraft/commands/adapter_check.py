"""`polygraft adapters check`: what a server would say to a directory, without one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.connection import JsonOption, print_json
from polygraft.commands.failure import CommandFailed, ExitCode, exit_code_of

if TYPE_CHECKING:
    from polygraft.adapters.inspection import Inspected
    from polygraft.server.config import ServerConfig

_UNCHECKED = (
    "without --model: names and shapes of the base's layers, values, and the base itself were not "
    "checked"
)


def check(
    source: Annotated[Path, typer.Argument(help="A PEFT directory or a run of the trainer.")],
    model: Annotated[
        str | None,
        typer.Option(help="Base to check it against: a directory, hub id or builtin:nano."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The server's YAML or TOML file, for its limits.")
    ] = None,
    require_verified: Annotated[
        bool, typer.Option(help="Refuse files that do not say which base they were made for.")
    ] = False,
    allow_no_effect: Annotated[
        bool, typer.Option(help="Accept a LoRA that changes nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a server would say to an adapter, without a server.

    With --model the base is loaded, everything is checked that an upload checks, and the adapter is
    run as an upload is before it is published. Without it, all is checked that needs no base.
    Limits are those of POLYGRAFT_* variables and --config. Ends with 0 if it would be taken; each
    problem is one line.
    """
    if not source.is_dir():
        raise CommandFailed(f"{source} is not a directory.", ExitCode.USAGE)
    from polygraft.adapters.errors import PolygraftError
    from polygraft.server.config import load_config

    overrides = {} if model is None else {"model": model}
    settings = load_config(overrides, os.environ, config)
    try:
        found = _inspect(source, settings, model is not None, require_verified, allow_no_effect)
    except PolygraftError as error:
        problems = error.problems or (error,)
        if as_json:
            print_json({"accepted": False, "problems": [str(problem) for problem in problems]})
        else:
            for problem in problems:
                typer.echo(str(problem))
            typer.secho(f"refused: {len(problems)} problem(s)", fg="red", err=True)
        raise typer.Exit(exit_code_of(error)) from error
    _print_inspected(found, as_json)


def _inspect(
    source: Path,
    settings: ServerConfig,
    has_base: bool,
    require_verified: bool,
    allow_no_effect: bool,
) -> Inspected:
    from polygraft.adapters.inspection import inspect_alone, inspect_for_base
    from polygraft.client.upload import find_adapter

    files, limits = find_adapter(source), settings.adapters.limits()
    if not has_base:
        return inspect_alone(files, limits, require_verified=require_verified)
    import transformers

    from polygraft.server.trial_run import trial_engine

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    typer.echo(f"loading {settings.model} ...", err=True)
    # One adapter is tried, on a few short prompts.
    little = {"kv_bytes": min(settings.engine.kv_bytes or 64 << 20, 64 << 20)}
    small = settings.model_copy(update={"engine": settings.engine.model_copy(update=little)})
    with trial_engine(small) as (engine, self_test):
        return inspect_for_base(
            files,
            engine.geometry,
            limits,
            fits=engine.bank.fits,
            prove=partial(self_test.prove, "checked", allow_no_effect=allow_no_effect),
            require_verified=require_verified,
            allow_no_effect=allow_no_effect,
        )


def _print_inspected(found: Inspected, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json({"accepted": None if found.base is None else True, **asdict(found)})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for name, value in _rows(found):
        table.add_row(name, value)
    Console(highlight=False).print(table)
    for line in found.checks:
        typer.echo(line)
    for warning in found.warnings:
        typer.secho(f"note: {warning}", fg="yellow", err=True)
    if found.base is None:
        typer.secho(f"note: {_UNCHECKED}", fg="yellow", err=True)
    else:
        typer.echo("a server with this base would take it", err=True)


def _rows(found: Inspected) -> list[tuple[str, str]]:
    rows = [("kind", found.kind.replace("_", " "))]
    if found.kind == "lora":
        rows.append(("rank", f"{found.max_rank} at most"))
    else:
        rows.append(("virtual tokens", str(found.num_virtual_tokens)))
    if found.modules:
        rows.append(("layers", ", ".join(found.modules)))
    if found.features:
        rows.append(("besides", ", ".join(found.features)))
    rows.append(("tensors", str(found.num_tensors)))
    rows.append(("bytes", f"{found.num_bytes:,}"))
    if found.base is not None:
        mark = "verified" if found.is_verified else "UNVERIFIED"
        rows.append(("base", f"{found.base}, {mark}"))
    return rows
