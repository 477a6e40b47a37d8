"""`polygraft train`: one adapter from one recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.config import RunConfig
    from polygraft.trainer.run import RunResult

app = typer.Typer(add_completion=False)

Recipe = Annotated[Path | None, typer.Argument(help="YAML file; see docs/training.md.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. optim.epochs=2."),
]
Output = Annotated[Path | None, typer.Option(help="Folder that gets the run directory.")]
Resume = Annotated[
    Path | None, typer.Option(help="Go on with a run that Ctrl-C ended; no recipe then.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def train(
    recipe: Recipe = None,
    overrides: Set = None,
    output: Output = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Train an adapter, score it against the base, and write a run directory.

    Exit codes: 2 recipe, 3 data, 4 training failed and nothing saved, 130 interrupted, state kept.
    """
    from polygraft.trainer.errors import TrainerError
    from polygraft.trainer.processes import is_first

    try:
        config = _config(recipe, overrides or [], output, resume)
        result = _train(config, resume)
        if not is_first():
            return
    except TrainerError as error:
        if not is_first():  # the first process says it
            raise typer.Exit(error.exit_code) from None
        raise CommandFailed(str(error), ExitCode(error.exit_code)) from error
    if as_json:
        typer.echo(json.dumps(_summary(result)))
    else:
        _show(result)


def _config(
    recipe: Path | None, overrides: list[str], output: Path | None, resume: Path | None
) -> RunConfig:
    from polygraft.trainer.recipe import load_recipe, load_resolved

    if (recipe is None) == (resume is None):
        raise CommandFailed("give a recipe, or --resume with a run.", ExitCode.USAGE)
    if resume is not None:
        if overrides or output:
            raise CommandFailed("--resume goes on as before: no --set, --output.", ExitCode.USAGE)
        return load_resolved(resume)
    assert recipe is not None
    config = load_recipe(recipe, overrides)
    return config.model_copy(update={"output": output}) if output else config


def _train(config: RunConfig, resume: Path | None) -> RunResult:
    from rich.console import Console

    from polygraft.trainer.processes import is_first
    from polygraft.trainer.progress import ProgressBar
    from polygraft.trainer.run import train

    if not is_first():  # of several processes; it computes, the first one tells
        return train(config, resume=resume)
    with ProgressBar(Console(stderr=True), config.name) as progress:
        return train(config, progress, resume=resume)


def _summary(result: RunResult) -> dict[str, object]:
    return {
        "run": str(result.directory),
        "digest": result.digest,
        "best": {
            "step": result.best.step,
            "validation_loss": result.best.loss,
            result.best.metric: result.best.value,
        },
        "test": [subject.as_json() for subject in result.subjects],
        "training_seconds": round(result.seconds, 1),
    }


def _show(result: RunResult) -> None:
    from rich.console import Console

    from polygraft.trainer.saved import UNSERVED
    from polygraft.trainer.scoring import score_table

    console = Console()
    rows = result.subjects[0].rows
    console.print(score_table(result.subjects, f"{rows} held-out rows"))
    console.print(f"run      {result.directory}", highlight=False, soft_wrap=True)
    console.print(f"version  {result.digest}", highlight=False, soft_wrap=True)
    unserved = UNSERVED.get(result.config.method.kind)
    console.print(f"report   {result.directory / 'report.html'}", highlight=False, soft_wrap=True)
    push = f"polygraft push {result.directory} --promote live"
    next_step = f"not to be served: {unserved}" if unserved else f"next     {push}"
    console.print(next_step, highlight=False, soft_wrap=True)
