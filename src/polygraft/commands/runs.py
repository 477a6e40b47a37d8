"""`polygraft runs`: the training runs of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from polygraft.trainer.run_listing import RunRecord

app = typer.Typer(add_completion=False, no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Where the runs are.")]
Run = Annotated[Path, typer.Argument(help="The directory of a run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def runs() -> None:
    """List, show and compare training runs."""


@app.command("list")
def list_runs(folder: Folder = Path("runs"), as_json: Json = False) -> None:
    """Every run with its method, scores and cost, oldest first."""
    from polygraft.trainer.run_listing import find_runs

    found = find_runs(folder)
    if as_json:
        typer.echo(json.dumps([run.as_json() for run in found]))
        return
    if not found:
        typer.echo(f"no runs in {folder}; `polygraft train RECIPE` makes one", err=True)
        return
    from rich.console import Console
    from rich.table import Column, Table

    right = {"justify": "right"}
    table = Table(
        Column("run", overflow="fold"), "method", "metric", Column("base", **right),  # type: ignore[arg-type]
        Column("adapter", **right), Column("parameters", **right), Column("s", **right), "",  # type: ignore[arg-type]
    )  # fmt: skip
    for run in found:
        table.add_row(*_row(run))
    Console(highlight=False).print(table)


@app.command()
def show(run: Run) -> None:
    """The report of one run, as JSON."""
    from polygraft.trainer.run_listing import read_run

    found = read_run(run)
    typer.echo(json.dumps({**found.as_json(), "report": found.report}, indent=2))


@app.command()
def diff(one: Run, other: Run, as_json: Json = False) -> None:
    """In which settings and scores two runs differ."""
    from polygraft.trainer.run_listing import differences, read_run

    first, second = read_run(one), read_run(other)
    found = list(differences(first, second))
    metrics = dict.fromkeys([first.metric, second.metric])
    found += [
        (f"adapter {m}", first.score("adapter", m), second.score("adapter", m)) for m in metrics
    ]
    if as_json:
        typer.echo(json.dumps({key: [here, there] for key, here, there in found}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", one.name, other.name)
    for key, here, there in found:
        table.add_row(key, str(here), str(there))
    Console(highlight=False).print(table)


def _row(run: RunRecord) -> list[str]:
    method = {key: value for key, value in run.config["method"].items() if key != "kind"}
    shown = ", ".join(f"{key} {value}" for key, value in method.items() if value)
    cost = run.report.get("cost", {})
    mark = "" if run.is_complete else "interrupted"
    if run.servable is False:
        mark = "not served"
    return [
        run.directory.name,
        f"{run.config['method']['kind']}: {shown}",
        run.metric,
        _number(run.score("base")),
        _number(run.score("adapter")),
        f"{cost['trained_parameters']:,}" if cost.get("trained_parameters") else "-",
        _number(cost.get("training_seconds")),
        mark,
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
