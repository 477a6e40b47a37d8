"""`polygraft likelihood`: how likely a running server finds continuations of one text."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands import arguments
from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json

if TYPE_CHECKING:
    from polygraft.client import Score

app = typer.Typer(add_completion=False)


@app.command()
def likelihood(
    prompt: Annotated[str, typer.Argument(help="The text before them.")],
    continuations: Annotated[
        list[str], typer.Argument(help="What may follow; mind the space in front.")
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="name, name@alias, name@7 or sha256:...; several with weights compose.",
            metavar="REFERENCE[=WEIGHT]",
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Compare continuations of a text by their log-likelihood, the most likely first.

    The text is sent as it is: no recipe, no chat template.
    """
    from polygraft.client import Client, ScoreItem

    named = arguments.adapters_of(adapter or [])
    with Client(server) as client:
        scores = client.score(ScoreItem.each(continuations, prompt=prompt), **named)  # type: ignore[arg-type]
    if as_json:
        texts = zip(continuations, scores, strict=True)
        print_json([{"continuation": text, **dataclasses.asdict(score)} for text, score in texts])
    else:
        _show(continuations, scores)


def _show(continuations: list[str], scores: list[Score]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("continuation", "log-likelihood", "per token", "tokens", "greedy", box=None)
    ranked = sorted(zip(continuations, scores, strict=True), key=lambda pair: -pair[1].logprob)
    for text, score in ranked:
        count = len(score.tokens)
        each = f"{score.logprob / count:.3f}"
        greedy = "yes" if score.is_greedy else ""
        table.add_row(repr(text), f"{score.logprob:.3f}", each, str(count), greedy)
    Console(highlight=False, markup=False).print(table)
