"""`polygraft mix`: what a recipe trains on, before it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. seed=1."),
]


@app.command()
def mix(
    recipe: Annotated[Path, typer.Argument(help="YAML file with data.mixture.")],
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write every row that is trained on, as JSONL.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Count, and with --out write, the rows of a recipe's mixture: per source what there is, what
    the cap leaves, how many times the rate makes of it, and tokens.

    Only the tokenizer of the base is loaded. The same seed gives the same rows.
    """
    from polygraft.trainer.checked_data import check_data
    from polygraft.trainer.mixture_view import mixture_table, parts_of, write_rows
    from polygraft.trainer.recipe import load_recipe

    config = load_recipe(recipe, overrides or [])
    data = check_data(config)
    parts = parts_of(config, data)
    if out is not None:
        write_rows(parts, data, out)
    if as_json:
        typer.echo(json.dumps({"notes": data.notes, "parts": [part.as_json() for part in parts]}))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for note in data.notes:
        typer.echo(note, err=True)
    console.print(mixture_table(parts))
    if out is not None:
        typer.echo(str(out))
