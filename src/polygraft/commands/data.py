"""`polygraft data`: look at training data before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polygraft.trainer.config import Data
    from polygraft.trainer.data_check import Gathered

app = typer.Typer(add_completion=False, no_args_is_help=True)
SHOWN = 5
"""Rows named per finding; --json names all."""

Files = Annotated[
    list[str],
    typer.Argument(help="JSONL, CSV or Parquet files, hf:owner/name:file, or one recipe.yaml."),
]
Template = Annotated[
    list[str] | None,
    typer.Option("--template", help="{field} text or builtin:<id>; may be repeated."),
]
Completion = Annotated[str, typer.Option(help="Field that is to be learned.")]
Group = Annotated[str | None, typer.Option(help="Field that names the group of a row.")]
Form = Annotated[str, typer.Option(help="auto, fields, messages or text.")]
BasePath = Annotated[str, typer.Option("--base", help="Whose tokenizer counts the tokens.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with every row number.")]


@app.callback()
def data() -> None:
    """Check, split and show training data."""


@app.command()
def check(
    files: Files,
    base: BasePath = "builtin:nano",
    template: Template = None,
    completion: Completion = "completion",
    group: Group = None,
    form: Form = "auto",
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a row may have; none: the base's window.")
    ] = None,
    tokens: Annotated[bool, typer.Option(help="Count tokens, which loads a tokenizer.")] = True,
    as_json: Json = False,
) -> None:
    """Say what is wrong with data, with the rows: schema, repeats, leaks, lengths, labels.

    Several files are the splits of one data set. Ends with 3 when training would fail or mislead.
    """
    from polygraft.trainer.data_check import as_json as to_json
    from polygraft.trainer.data_check import check_content

    section, base = _section(files, base, template, completion, group, form)
    gathered = _gather(section, files)
    check_content(gathered)
    lengths = _count_tokens(gathered, section, base, max_length) if tokens else {}
    result = to_json(gathered, lengths)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        _show(result)
    if gathered.has_errors:
        raise typer.Exit(ExitCode.DATA)


@app.command()
def split(
    file: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file, or hf:owner/name:file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the three JSONL files.")],
    validation: Annotated[float, typer.Option(help="Fraction of the groups.")] = 0.1,
    test: Annotated[float, typer.Option(help="Fraction of the groups.")] = 0.1,
    by: Annotated[
        str | None, typer.Option(help="Field that names the group; none: the row's content.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed makes another split.")] = 0,
) -> None:
    """Write train, validation and test files; a group goes whole to one of them, by its hash."""
    from polygraft.trainer.recipe import parse_recipe
    from polygraft.trainer.row_split import split_rows

    settings = {"validation": validation, "test": test, "by": by, "seed": seed}
    chosen = parse_recipe({"data": {"train": file, "split": settings}}).data.split
    assert chosen is not None
    counts, dropped = split_rows(file, out, chosen)
    for name, count in counts.items():
        typer.echo(f"{out / f'{name}.jsonl'}: {count} rows")
    if dropped:
        typer.echo(f"dropped {dropped} train rows that also stand in validation or test", err=True)


@app.command()
def render(
    files: Files,
    base: BasePath = "builtin:nano",
    template: Template = None,
    completion: Completion = "completion",
    form: Form = "auto",
    rows: Annotated[int, typer.Option(min=1, help="So many rows of each split.")] = 3,
    as_json: Json = False,
) -> None:
    """Show rows as the model sees them: supervised tokens green, the others dim."""
    from polygraft.trainer.frozen_base import load_tokenizer
    from polygraft.trainer.rendering import rendered_rows

    section, base = _section(files, base, template, completion, None, form)
    gathered = _gather(section, files)
    encoded = _encoded(gathered, section, load_tokenizer(base), rows)
    shown = rendered_rows(encoded, load_tokenizer(base))
    if as_json:
        for row in shown:
            typer.echo(json.dumps(row.as_json(), ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print("[green]supervised[/] [dim]masked[/]; between ⟦ and ⟧ is what is learned")
    for row in shown:
        console.print(f"[bold]{row.source}[/]  {row.count}", markup=True)
        console.print(row.text(), soft_wrap=True)


def _section(
    files: list[str],
    base: str,
    template: list[str] | None,
    completion: str,
    group: str | None,
    form: str,
) -> tuple[Data, str]:
    """The data section of a recipe, or one made of the options; and whose tokenizer to use."""
    from polygraft.trainer.recipe import load_recipe, parse_recipe

    recipes = [name for name in files if name.endswith((".yaml", ".yml"))]
    if recipes and len(files) > 1:
        raise CommandFailed("give one recipe, or data files.", ExitCode.USAGE)
    if recipes:
        config = load_recipe(Path(recipes[0]))
        return config.data, config.base.path
    section: dict[str, Any] = {"train": files[0], "split": {"by": group}, "form": form}
    section |= {"completion": completion}
    if template:
        section["template"] = template[0] if len(template) == 1 else template
    return parse_recipe({"data": section}).data, base


def _gather(section: Data, files: list[str]) -> Gathered:
    """Every example by split, with the broken rows as findings."""
    from polygraft.trainer.data_check import Gathered, gather
    from polygraft.trainer.reader import make_reader
    from polygraft.trainer.source import load_source
    from polygraft.trainer.splits import split_by_group

    if section.task:
        return Gathered(load_source(section).splits.named())
    assert section.train is not None
    reader = make_reader(section, section.train)
    group = section.split.by if section.split else None
    if not files[0].endswith((".yaml", ".yml")):
        return gather(_by_stem(files), reader.pairs_of, group)
    if not section.split:
        named = {"train": section.train, "validation": section.validation, "test": section.test}
        return gather({k: v for k, v in named.items() if v}, reader.pairs_of, group)
    whole = gather({"all": section.train}, reader.pairs_of, group)
    splits = split_by_group(whole.splits["all"], section.split)
    return Gathered(splits.named(), whole.findings)


def _by_stem(files: list[str]) -> dict[str, str]:
    """Files by the name of their split, which is the name of the file where those differ."""
    stems = [Path(name).stem for name in files]
    names = stems if len(set(stems)) == len(stems) else files
    return dict(zip(names, files, strict=True))


def _encoded(gathered: Gathered, section: Data, tokenizer: Any, rows: int | None) -> dict[str, Any]:
    """Encoded rows by split; what cannot be encoded becomes a finding."""
    from polygraft.trainer.encode import encode_examples
    from polygraft.trainer.errors import DataError
    from polygraft.trainer.source import build_recipe, prompt_for

    recipe = build_recipe(prompt_for(section), tokenizer)
    encoded: dict[str, Any] = {}
    for split_name, examples in gathered.splits.items():
        encoded[split_name] = []
        for example in examples[:rows]:
            try:
                encoded[split_name] += encode_examples([example], recipe, tokenizer)
            except DataError as error:
                gathered.add("error", split_name, "special_token", error.message, [example])
    return encoded


def _count_tokens(
    gathered: Gathered, section: Data, base: str, max_length: int | None
) -> dict[str, Any]:
    from polygraft.trainer.checked_data import DEFAULT_MAX_LENGTH
    from polygraft.trainer.data_check import check_encoded, token_lengths
    from polygraft.trainer.frozen_base import load_tokenizer, read_context_length

    window = read_context_length(base) or DEFAULT_MAX_LENGTH
    limit = max_length or section.max_length or min(window, DEFAULT_MAX_LENGTH)
    lengths = {}
    for name, rows in _encoded(gathered, section, load_tokenizer(base), None).items():
        check_encoded(gathered, name, rows, limit)
        if rows:
            lengths[name] = token_lengths(rows)
    return lengths


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    title = "tokens: least - median - 95th percentile - most"
    table = Table("split", "rows", "prompt", "completion", "labels", title=title)
    for name, part in result["splits"].items():
        spreads = [_spread(part["tokens"], key) for key in ("prompt", "completion")]
        labels = ", ".join(f"{label} {count}" for label, count in part["labels"].items())
        table.add_row(name, str(part["rows"]), *spreads, labels or "texts")
    console.print(table)
    for finding in result["findings"]:
        style = "red" if finding["level"] == "error" else "yellow"
        places = ", ".join(finding["rows"][:SHOWN])
        more = len(finding["rows"]) - SHOWN
        console.print(f"{finding['level']}: ", style=style, end="")
        console.print(f"{finding['split']}: {finding['text']}", markup=False, soft_wrap=True)
        tail = f" and {more} more" if more > 0 else ""
        console.print(f"    {places}{tail}", markup=False, style="dim", soft_wrap=True)
    if not result["findings"]:
        console.print("nothing to complain about")


def _spread(tokens: Mapping[str, Any] | None, key: str) -> str:
    if tokens is None:
        return "-"
    part = tokens[key]
    return f"{part['least']} - {part['median']} - {part['p95']} - {part['most']}"
