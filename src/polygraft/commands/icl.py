"""`polygraft icl`: what solved rows in the prompt teach, beside adapters, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.icl import Asked, ShotScore
    from polygraft.trainer.progress import Observer
    from polygraft.trainer.source import Source

app = typer.Typer(add_completion=False)

Subject = Annotated[
    str,
    typer.Argument(
        help="A base (builtin:nano, a directory, a hub id) or the directory of an adapter; with "
        "--server a reference, or base."
    ),
]
TaskName = Annotated[str | None, typer.Option("--task", help="builtin:<name>.")]
DataFile = Annotated[
    Path | None,
    typer.Option("--data", help="Rows, split by hash as a recipe's `split: {}` does."),
]
Recipe = Annotated[Path | None, typer.Option("--recipe", help="A recipe; its data section counts.")]
Shots = Annotated[str, typer.Option(help="Numbers of solved rows.")]
Beside = Annotated[
    list[str] | None,
    typer.Option("--beside", metavar="RUN", help="An adapter to score without shots; repeatable."),
]
Server = Annotated[str | None, typer.Option("--server", help="Ask this server.")]
Picture = Annotated[Path | None, typer.Option("--picture", help="Draw this PNG.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@app.command()
def icl(
    subject: Subject,
    task: TaskName = None,
    data: DataFile = None,
    recipe: Recipe = None,
    template: Annotated[str, typer.Option(help="Prompt for --data.")] = "{prompt}",
    completion: Annotated[str, typer.Option(help="Field of the answer in --data.")] = "completion",
    by: Annotated[str | None, typer.Option(help="Field of the group in --data.")] = None,
    shots: Shots = "0,1,2,4,8",
    draws: Annotated[int, typer.Option(min=1, help="Choices of solved rows to average.")] = 3,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first test rows.")] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; none: the task's own, else 64.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    beside: Beside = None,
    server: Server = None,
    base: Annotated[str | None, typer.Option("--base", help="The base of adapters.")] = None,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Score in-context learning on the test split: zero-shot, one-shot, few-shot.

    Solved rows come from the train split. A row that no longer fits the context window is counted,
    never cut, and scores as a wrong answer.
    """
    from polygraft.trainer.icl import score_in_context

    counts = _numbers(shots)
    source = _source(task, data, recipe, template, completion, by)
    if max_output_tokens is not None:
        source = source.with_limit(max_output_tokens)
    settings = {"draws": draws, "seed": seed, "rows": rows}
    asked = _asked(subject, server, base)
    scores = score_in_context(asked, source, shots=counts, observer=_observer(), **settings)  # type: ignore[arg-type]
    others: list[ShotScore] = []
    for name in beside or []:
        other = _asked(name, server, base)
        others += score_in_context(other, source, shots=(0,), **settings)  # type: ignore[arg-type]
    if picture is not None:
        from polygraft.trainer.icl_view import plot_shots

        plot_shots(scores, others, picture)
    if as_json:
        record = {
            "schema": "polygraft.icl/1",
            "subject": asked.name,
            "shots": [score.as_json() for score in scores],
            "beside": [score.as_json() for score in others],
        }
        typer.echo(json.dumps(record))
    else:
        _show(scores, others)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise CommandFailed(
            f"--shots must be numbers such as 0,1,2,4,8, found {text}.", ExitCode.USAGE
        ) from None


def _source(
    task: str | None,
    data: Path | None,
    recipe: Path | None,
    template: str,
    completion: str,
    by: str | None,
) -> Source:
    from polygraft.trainer.recipe import load_recipe, parse_recipe
    from polygraft.trainer.source import load_source

    if sum(given is not None for given in (task, data, recipe)) != 1:
        raise CommandFailed("give one of --task, --data and --recipe.", ExitCode.USAGE)
    if recipe is not None:
        return load_source(load_recipe(recipe).data)
    if task is not None:
        return load_source(parse_recipe({"data": {"task": task}}).data)
    section = {
        "train": str(data),
        "split": {"by": by},
        "template": template,
        "completion": completion,
    }
    return load_source(parse_recipe({"data": section}).data)


def _asked(name: str, server: str | None, base: str | None) -> Asked:
    from polygraft.trainer import icl_asked

    if server is not None:
        return icl_asked.served(server, name)
    folder = Path(name)
    if (folder / "adapter").is_dir() or (folder / "adapter_config.json").is_file():
        return icl_asked.local_adapter(folder, base)
    return icl_asked.local_base(name)


def _observer() -> Observer:
    from rich.console import Console

    from polygraft.trainer.progress import ProgressBar

    return ProgressBar(Console(stderr=True), "icl")


def _show(scores: list[ShotScore], others: list[ShotScore]) -> None:
    from rich.console import Console

    from polygraft.trainer.icl_view import shots_table
    from polygraft.trainer.scoring import literal_text

    subject = scores[0].draws[0].subject
    console = Console(highlight=False)
    console.print(shots_table(scores, others, f"{subject.rows} held-out rows"))
    if asked := literal_text(subject.prompt):
        console.print(f"the base was asked: {asked}", markup=False, soft_wrap=True)
    console.print(
        "± is the standard deviation over draws of solved rows; tokens of a prompt and their share "
        "of the context window; rows that are too long for it count as wrong; ms of one answer.",
        style="dim",
        soft_wrap=True,
    )
