"""`polygraft chain`: rounds one after the other, and what each of them forgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from polygraft.trainer.chain.run import ChainResult

app = typer.Typer(add_completion=False)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. replay.cap=50."),
]


@app.command()
def chain(
    file: Annotated[Path, typer.Argument(help="YAML file; see docs/training.md.")],
    overrides: Set = None,
    output: Annotated[Path | None, typer.Option(help="Folder that gets the chain's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train rounds that go on from each other, and score all test sets after each.

    Each later round is also trained from the base alone, and with rows of the earlier ones where
    the file says `replay`. Writes the runs, chain.json and chain.png.
    """
    from polygraft.trainer.chain.recipe import load_chain
    from polygraft.trainer.chain.run import run_chain

    recipe, rounds = load_chain(file, overrides or [])
    if output is not None:
        recipe = recipe.model_copy(update={"output": output})
    from rich.console import Console

    from polygraft.trainer.chain.view import plot_chain
    from polygraft.trainer.progress import ProgressBar

    with ProgressBar(Console(stderr=True), recipe.name) as progress:
        result = run_chain(recipe, rounds, progress)
    plot_chain(result, result.directory / "chain.png")
    if as_json:
        typer.echo(json.dumps({**result.as_json(), "directory": str(result.directory)}))
    else:
        _show(result)


def _show(result: ChainResult) -> None:
    from rich.console import Console

    from polygraft.trainer.chain.view import chain_table, change_lines

    console = Console(highlight=False)
    console.print(chain_table(result))
    for line in change_lines(result):
        console.print(line, markup=False, soft_wrap=True)
    console.print(str(result.directory), soft_wrap=True)
