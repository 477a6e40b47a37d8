"""`polygraft adapters gate`: promote a version if it is better than what is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.aliases import LIVE, AliasOption, ExpectOption, ReasonOption, show_moved
from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.client import Alias, GateCheck, GatePolicy, GateRefused


def gate(
    version: Annotated[str, typer.Argument(help="The version to promote: name@7, name@canary.")],
    data: Annotated[Path, typer.Option(help="Held-out rows, at least 100: JSONL or CSV.")],
    metric: Annotated[
        str | None, typer.Option(help="rouge1, rouge2, rougeL or exact_match.")
    ] = None,
    alias: AliasOption = LIVE,
    template: Annotated[
        str, typer.Option(help="Prompt, where the versions do not carry one.")
    ] = "{prompt}",
    completion: Annotated[str, typer.Option(help="Field of the wanted answer.")] = "completion",
    min_delta: Annotated[
        float | None, typer.Option(help="Points that it must be better. Default: above 0.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Points that the interval may reach below 0. Default: 0.5."),
    ] = None,
    require: Annotated[
        bool, typer.Option("--require", help="From now on, nothing comes in without a gate.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it anyway; the --reason is recorded.")
    ] = False,
    reason: ReasonOption = "",
    expect: ExpectOption = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Score a version, the one served now and the base through the server; promote or refuse.

    Refused: exit code 5 and a table that says why. Nothing has moved then.
    """
    if force and not reason:
        raise CommandFailed("--force needs a --reason, which is recorded.", ExitCode.USAGE)
    name, at, number = version.partition("@")
    if not at or not number:
        raise CommandFailed(f"{version} names no version; write name@7.", ExitCode.USAGE)
    from polygraft.client import GateRefused
    from polygraft.trainer.errors import TrainerError
    from polygraft.trainer.gate import GateRun, run_gate

    run = GateRun(
        address=server,
        name=name,
        version=number,
        data=data,
        alias=alias,
        metric=metric,
        template=template,
        completion=completion,
        reason=reason,
        expected_generation=expect,
        policy=_policy(min_delta, tolerance, require),
        force=force,
    )
    try:
        moved = run_gate(run)
    except TrainerError as error:
        raise CommandFailed(str(error), ExitCode(error.exit_code)) from error
    except GateRefused as error:
        print_table(checks_of(error), f"{version} against {name}@{alias}: refused")
        raise
    if moved.verdict is not None and not as_json:
        print_table(moved.verdict.checks, _title(version, moved))
    show_moved(moved, as_json)


def _policy(min_delta: float | None, tolerance: float | None, require: bool) -> GatePolicy | None:
    """None leaves the alias' own, or the server's defaults."""
    from polygraft.client import GatePolicy

    if min_delta is None and tolerance is None and not require:
        return None
    return GatePolicy(required=require, min_delta=min_delta, tolerance=tolerance)


def _title(version: str, moved: Alias) -> str:
    outcome = "forced" if moved.forced else "passed"
    assert moved.verdict is not None
    return f"{version} against {moved.verdict.against}, {moved.verdict.metric}: {outcome}"


def checks_of(error: GateRefused) -> list[GateCheck]:
    """From the metadata of the refusal: "name|found|needed|passed or failed"."""
    from polygraft.client import GateCheck

    fields: list[list[str]] = []
    while row := error.metadata.get(f"check_{len(fields)}"):
        fields.append(row.split("|"))
    return [GateCheck(name, found, needed, end == "passed") for name, found, needed, end in fields]


def print_table(checks: Sequence[GateCheck], title: str, *, to_stderr: bool = False) -> None:
    """Every check of a gate, with what was found and needed."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("check", "found", "needed", ""):
        table.add_column(column)
    for check in checks:
        mark = "[green]ok[/green]" if check.passed else "[red]refused[/red]"
        table.add_row(check.name, check.found, check.needed, mark)
    Console(stderr=to_stderr).print(table)
