"""`polygraft templates`: the wordings that turn raw columns into prompts and completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

app = typer.Typer(add_completion=False, no_args_is_help=True)

Extra = Annotated[Path | None, typer.Option("--file", help="YAML file with templates of your own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def templates() -> None:
    """List, show and apply prompt templates."""


@app.command("list")
def list_templates(extra: Extra = None, as_json: Json = False) -> None:
    """Every template by task, with the fields that it needs."""
    from polygraft.trainer.library import load_library

    found = load_library(extra).templates.values()
    if as_json:
        typer.echo(json.dumps([template.model_dump(mode="json") for template in found]))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("task", Column("id", no_wrap=True), "fields", "metrics", "")
    for template in found:
        mark = "inverted" if template.inverted else ""
        metrics = ", ".join(template.metrics)
        table.add_row(template.task, template.id, ", ".join(template.fields), metrics, mark)
    Console(highlight=False).print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Its id.")], extra: Extra = None, as_json: Json = False
) -> None:
    """One template, and whether an adapter can carry it to a server."""
    from polygraft.trainer.library import load_library

    template = load_library(extra).find(name)
    segments = template.segments()
    if as_json:
        typer.echo(json.dumps({**template.model_dump(mode="json"), "segments": segments}))
        return
    import yaml

    record = template.model_dump(mode="json", exclude_defaults=True)
    typer.echo(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), nl=False)
    if segments is None:
        typer.echo("# computes on a field: whoever asks the adapter sends the finished prompt")
    else:
        typer.echo("# an adapter carries it; requests send the fields")


@app.command()
def add(
    source: Annotated[Path, typer.Argument(help="YAML file with new templates.")],
    extra: Annotated[Path, typer.Option("--file", help="YAML file that gets them.")],
) -> None:
    """Check templates and add them to a file of your own; nothing is added if one is wrong."""
    from polygraft.trainer.library import add_templates

    for name in add_templates(source, extra):
        typer.echo(name)


@app.command()
def apply(
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file, or hf:...")],
    out: Annotated[Path, typer.Option("--out", help="New JSONL file of prompts and completions.")],
    name: Annotated[
        list[str] | None, typer.Option("--template", help="An id; may be repeated.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Every wording of a task.")] = None,
    inverted: Annotated[bool, typer.Option(help="With --task, inverted ones as well.")] = False,
    every: Annotated[
        bool, typer.Option("--every", help="Each row in each wording, not in one of them.")
    ] = False,
    extra: Extra = None,
) -> None:
    """Make an instruction set of raw rows: one wording per row, fixed by the row's content.

    Each line names the row it was made of, so that later messages can.
    """
    from polygraft.trainer.instruction_set import write_instructions
    from polygraft.trainer.library import load_library

    if bool(name) == bool(task):
        raise CommandFailed("give --template or --task.", ExitCode.USAGE)
    library = load_library(extra)
    if task:
        chosen = [t for t in library.of_task(task) if inverted or not t.inverted]
    else:
        chosen = [library.find(one) for one in name or []]
    count = write_instructions(data, out, chosen, every=every)
    typer.echo(f"{out}: {count} rows in {len(chosen)} wordings")
