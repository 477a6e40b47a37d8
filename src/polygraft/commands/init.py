"""`polygraft init`: a commented recipe to start from, with rows to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to write; made if need be.")] = Path(),
    task: Annotated[
        str | None, typer.Option(help="Also write the made rows of a built-in task, as dsum.")
    ] = None,
) -> None:
    """Write run.yaml, every setting explained, and say where the data goes.

    With --task the data is there already, and `polygraft train run.yaml` works at once. Nothing is
    overwritten.
    """
    from polygraft.trainer.starter import write_starter

    written = write_starter(directory, task)
    for path in written:
        typer.echo(str(path))
    recipe = written[0]
    if task is None:
        place = recipe.parent / "data" / "rows.jsonl"
        typer.echo(f"put your rows into {place}, with the fields prompt and completion", err=True)
    typer.echo(f"next: polygraft data check {recipe}; polygraft train {recipe}", err=True)
