"""The `polygraft` program: finds a command, imports its module, turns errors into one sentence.

Knows no command: they live in `polygraft.commands`, whose docstring says how to add one. A module
is imported when its command runs, so a slow or broken one does not touch the others.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import polygraft
from polygraft.adapters.errors import PolygraftError
from polygraft.commands import COMMANDS
from polygraft.commands.failure import CommandFailed, ExitCode, about_files, exit_code_of


class LazyGroup(TyperGroup):
    """A group whose commands are listed from a table and imported only to be run."""

    def __init__(self, **attrs: Any) -> None:
        attrs["commands"] = {name: TyperCommand(name, help=line) for name, line in COMMANDS.items()}
        super().__init__(**attrs)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command in place of its line in the table."""
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None or listed is None:
            return name, listed, rest
        module = importlib.import_module(f"polygraft.commands.{name}")
        return name, get_command(module.app), rest

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run; an error becomes one sentence and its exit code, never a traceback unasked."""
        try:
            return super().main(*args, **extra)
        except Exception as error:
            _print_error(error)
            sys.exit(exit_code_of(error))


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_error(error: Exception) -> None:
    if isinstance(error, PolygraftError | CommandFailed):
        text = str(error)
    elif said := about_files(error):
        text = said
    else:
        text = (
            f"unexpected {type(error).__name__}: {error}. "
            "This is a bug; `polygraft --traceback COMMAND ...` shows where."
        )
    if "--traceback" in sys.argv:
        traceback.print_exception(error)
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(text, err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polygraft {polygraft.__version__}")
        raise typer.Exit(ExitCode.OK)


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Also print where an error arose.")]


@app.callback()
def polygraft_command(version: Version = False, traceback: Traceback = False) -> None:
    """One frozen base model, many adapters: serve, train, score and push them."""


def main() -> None:
    """Entry point of the console script."""
    app()
