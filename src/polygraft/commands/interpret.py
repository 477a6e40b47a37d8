"""`polygraft interpret`: what a soft prompt reads like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.interpret import Reading

app = typer.Typer(add_completion=False)


@app.command()
def interpret(
    run: Annotated[Path, typer.Argument(help="A run or PEFT directory of a soft prompt.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base, where the adapter does not name it.")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=1, help="Shuffled vocabularies to hold it against.")
    ] = 20,
    picture: Annotated[
        Path | None, typer.Option(help="PNG to write; of a run, soft_prompt.png in it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reading as JSON.")] = False,
) -> None:
    """Show the vocabulary tokens nearest to each virtual token, chance, and how far each moved.

    Of a run, the reading is kept in it, for `polygraft report`.
    """
    if not run.is_dir():
        raise CommandFailed(f"{run} is not a directory.", ExitCode.USAGE)
    from polygraft.trainer.interpret import interpret as read
    from polygraft.trainer.recipe import RESOLVED
    from polygraft.trainer.run_directory import READING_FILE

    reading = read(run, base, draws=draws)
    text = json.dumps(reading.as_json(), ensure_ascii=False, indent=2)
    if (run / RESOLVED).is_file():
        (run / READING_FILE).write_text(text + "\n", encoding="utf-8")
        picture = picture or run / "soft_prompt.png"
    if as_json:
        typer.echo(text)
    else:
        _show(reading)
    if picture is not None:
        from polygraft.trainer.report.pictures import plot_reading

        plot_reading(reading.as_json(), picture, run.resolve().name)
        typer.echo(f"picture  {picture}", err=as_json)


def _show(reading: Reading) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "began at", "reads like", "chance", "cosine to start"):
        table.add_column(column)
    for token in reading.tokens:
        nearest = "  ".join(f"{n.text!r} {n.cosine:.2f}" for n in token.nearest)
        mark = "" if token.says_something else "[dim]"
        start = repr(token.start.text) if token.start else "-"
        kept = "-" if token.kept is None else f"{token.kept:.2f}"
        row = (str(token.index), start, nearest.replace("[", "\\["), f"{token.chance:.2f}", kept)
        table.add_row(*(mark + cell for cell in row))
    console = Console(highlight=False)
    console.print(table)
    for sentence in reading.sentences():
        console.print(sentence, soft_wrap=True)
    words = ", ".join(f"{text!r} x{count}" for text, count in reading.words()[:8])
    console.print(f"read most often: {words or 'nothing'}", soft_wrap=True, markup=False)
