"""`polygraft push`: a run of the trainer onto a server, through every check, up to an alias."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.push.pipeline import PushResult, PushRun

app = typer.Typer(add_completion=False)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A run directory of `polygraft train`.")],
    name: Annotated[
        str, typer.Option("--name", help="Name to publish under; default that of the recipe.")
    ] = "",
    promote: Annotated[
        str, typer.Option(metavar="ALIAS", help="Move this alias, as live, through the gate.")
    ] = "",
    gate: Annotated[
        Path | None,
        typer.Option(help="Held-out rows, at least 100; default the test split of the run."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="rouge1, rouge2, rougeL or exact_match.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, ask the server, change nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Past the gate; the --reason is recorded.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Kept with the move.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Check a run, upload it, compare the server's answers with the trainer's, gate and promote it.

    Refused: exit code 5 and why, with no alias moved; no server: 6. The same command again goes on
    where the last one stopped.
    """
    if force and not reason:
        raise CommandFailed("--force needs a --reason, which is recorded.", ExitCode.USAGE)
    if not promote and (gate or force or metric):
        raise CommandFailed("--gate, --metric and --force are for --promote ALIAS.", ExitCode.USAGE)
    if not run.is_dir():
        raise CommandFailed(f"{run} is not a directory.", ExitCode.USAGE)
    from polygraft.trainer.push.pipeline import PushRun
    from polygraft.trainer.recipe import RESOLVED, load_resolved

    chosen = name or (load_resolved(run).name if (run / RESOLVED).is_file() else "")
    wanted = PushRun(
        directory=run,
        address=server,
        name=chosen,
        promote=promote,
        gate=gate,
        metric=metric,
        dry_run=dry_run,
        force=force,
        reason=reason,
    )
    result = _push(wanted, quiet=as_json)
    if as_json:
        print_json(result.as_json())


def _push(wanted: PushRun, *, quiet: bool) -> PushResult:
    from dataclasses import replace

    from polygraft.client import GateRefused
    from polygraft.commands.gate import checks_of, print_table
    from polygraft.commands.transfer import progress_bar
    from polygraft.trainer.push.pipeline import push

    def done(step: str, text: str) -> None:
        if not quiet:
            typer.echo(f"{typer.style('✓', fg='green')} {step:<8} {text}")

    try:
        with progress_bar(f"uploading {wanted.name}") as progress:
            return push(replace(wanted, progress=progress, done=done))
    except GateRefused as error:
        title = f"{wanted.name} against {wanted.name}@{wanted.promote}: refused"
        print_table(checks_of(error), title, to_stderr=quiet)
        raise
