"""`polygraft compare`: ways to adapt a base, side by side on one task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.compare.recipe import Comparison

app = typer.Typer(add_completion=False)

File = Annotated[Path | None, typer.Argument(help="YAML file of arms; see docs/training.md.")]
Preset = Annotated[str | None, typer.Option(help="A shipped comparison: quick or all.")]
Only = Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; may be repeated.")]
Seeds = Annotated[str | None, typer.Option(help="Other seeds, e.g. 0,1,2.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder; none: comparisons/<name>. Goes on there.")
]
Parallel = Annotated[
    int | None, typer.Option(min=1, help="Jobs at a time; none: 2, or 1 on one core.")
]
Listed = Annotated[bool, typer.Option("--list", help="Print the arms and what they will train.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def compare(
    recipe: File = None,
    preset: Preset = None,
    arms: Only = None,
    seeds: Seeds = None,
    out: Out = None,
    parallel: Parallel = None,
    listed: Listed = False,
    as_json: Json = False,
) -> None:
    """Train every arm with every seed, and score, forgetting, parameters, memory, size and time of
    all side by side, with intervals over seeds and rows.

    Finished jobs are kept: after Ctrl-C the same command goes on. Exit code 5: a target of the
    comparison was not reached.
    """
    comparison = _comparison(recipe, preset, arms or [], seeds)
    if listed:
        _list(comparison)
        return
    from polygraft.commands.outcome import finish, run

    folder = out or Path("comparisons") / comparison.name
    outcome = run(comparison, folder, parallel)
    finish(outcome, as_json=as_json)


def _comparison(
    recipe: Path | None, preset: str | None, arms: list[str], seeds: str | None
) -> Comparison:
    from polygraft.commands.outcome import parse_seeds
    from polygraft.trainer.compare.recipe import load_comparison, load_preset

    if (recipe is None) == (preset is None):
        raise CommandFailed("give a YAML file of arms, or --preset.", ExitCode.USAGE)
    comparison = load_comparison(recipe) if recipe else load_preset(str(preset))
    if arms:
        comparison = comparison.only(arms)
    if seeds is not None:
        comparison = comparison.model_copy(update={"seeds": parse_seeds(seeds)})
    return comparison


def _list(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("arm", "group", "task", "method", "note", title=comparison.name)
    for name, arm in comparison.arms.items():
        last = comparison.recipes_of(name)[-1]
        settings = last.method.model_dump(exclude_defaults=True)
        method = ", ".join(f"{k} {v}" for k, v in settings.items())
        if arm.shots is not None:
            method = f"base, {arm.shots} shots"
        task = last.data.task or str(last.data.train)
        table.add_row(name, arm.group, task, method or last.method.kind, arm.note)
    console = Console(highlight=False)
    console.print(table)
    for target in comparison.targets:
        console.print(f"target: {target.say}", markup=False, soft_wrap=True)
