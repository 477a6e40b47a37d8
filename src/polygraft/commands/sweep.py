"""`polygraft sweep`: one recipe over a grid of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

app = typer.Typer(add_completion=False)

Recipe = Annotated[Path, typer.Argument(help="YAML file, as for `polygraft train`.")]
Over = Annotated[
    list[str] | None,
    typer.Option(
        "--over", metavar="KEY=A,B,...", help="Values to try, e.g. method.r=4,8,16; repeatable."
    ),
]
Curve = Annotated[
    bool, typer.Option("--rows", help="A learning curve: over data.rows=50,100,200,400,600.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of all points."),
]
Seeds = Annotated[str, typer.Option(help="Each point is trained with each.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder; none: comparisons/<name>. Goes on there.")
]
Parallel = Annotated[
    int | None, typer.Option(min=1, help="Jobs at a time; none: 2, or 1 on one core.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

CURVE = "data.rows=50,100,200,400,600"


@app.command()
def sweep(
    recipe: Recipe,
    over: Over = None,
    curve: Curve = False,
    overrides: Set = None,
    seeds: Seeds = "0,1,2",
    out: Out = None,
    parallel: Parallel = None,
    as_json: Json = False,
) -> None:
    """Train every combination of settings with every seed; table, picture, and the best with those
    that it cannot be told apart from.

    Finished jobs are kept: after Ctrl-C the same command goes on.
    """
    from polygraft.commands.outcome import finish, parse_seeds, run
    from polygraft.trainer.sweep import find_best, make_sweep, parse_axis

    if not over and not curve:
        raise CommandFailed("give --over KEY=A,B,... or --rows.", ExitCode.USAGE)
    axes = [parse_axis(text) for text in [*(over or []), *([CURVE] if curve else [])]]
    comparison = make_sweep(recipe, axes, overrides or [], parse_seeds(seeds))
    outcome = run(comparison, out or Path("comparisons") / comparison.name, parallel)
    from polygraft.trainer.compare.pictures import plot_sweep

    plot_sweep(outcome, axes, outcome.folder / "sweep.png")
    finish(outcome, as_json=as_json)
    best = find_best(outcome)
    if best is not None:
        typer.echo(best.sentence(), err=as_json)
