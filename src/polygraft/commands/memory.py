"""`polygraft memory`: what a training step will take, before it takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. optim.batch=4."),
]


@app.command()
def memory(
    recipe: Annotated[Path, typer.Argument(help="YAML file, or the directory of a run.")],
    overrides: Set = None,
    real: Annotated[
        bool, typer.Option("--measure", help="Also do two real steps, to say how wrong it was.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes as JSON.")] = False,
) -> None:
    """Predict the peak memory of the recipe's largest step: weights, gradients, optimizer states,
    activations, temporary.

    The base is loaded and the data read; the step runs on tensors without content.
    """
    from polygraft.trainer import methods
    from polygraft.trainer.memory_account import measure_account, memory_table, predict_account
    from polygraft.trainer.prepare import prepare
    from polygraft.trainer.progress import Silent
    from polygraft.trainer.recipe import load_recipe, load_resolved

    config = load_resolved(recipe) if recipe.is_dir() else load_recipe(recipe, overrides or [])
    prepared = prepare(config, Silent())
    model = methods.attach(prepared.base, prepared.config, prepared.source.prompt_text)
    account = predict_account(model, prepared)
    if real:
        account = measure_account(account, model, prepared)
    if as_json:
        typer.echo(json.dumps(account.as_json()))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(memory_table(account))
    console.print(account.sentence(), soft_wrap=True)
