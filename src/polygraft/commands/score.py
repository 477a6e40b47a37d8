"""`polygraft score`: an adapter beside its base on held-out rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.data import Example
    from polygraft.trainer.scoring import Candidate, Subject
    from polygraft.trainer.source import Source

app = typer.Typer(add_completion=False)

Adapter = Annotated[
    str,
    typer.Argument(help="A run or PEFT directory; with --server a reference such as dsum@live."),
]
DataFile = Annotated[Path | None, typer.Option("--data", help="JSONL or CSV with held-out rows.")]
TaskName = Annotated[str | None, typer.Option("--task", help="builtin:<name>: its test split.")]
Split = Annotated[str, typer.Option(help="Split of the task: validation or test.")]
Server = Annotated[
    str | None,
    typer.Option("--server", help="Score what this server answers, e.g. 127.0.0.1:50051."),
]
BasePath = Annotated[
    str | None, typer.Option("--base", help="The base, where the adapter does not name it.")
]
Template = Annotated[
    str, typer.Option(help="Prompt for --data, where the adapter does not carry one.")
]
Completion = Annotated[str, typer.Option(help="Field of the wanted answer in --data.")]
Predictions = Annotated[Path | None, typer.Option(help="Write every answer to this JSONL file.")]
Details = Annotated[
    bool,
    typer.Option(
        "--details", help="Precision and recall, unclipped ROUGE, every class, one word repeated."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")]


@app.command()
def score(
    adapter: Adapter,
    data: DataFile = None,
    task: TaskName = None,
    split: Split = "test",
    server: Server = None,
    base: BasePath = None,
    template: Template = "{prompt}",
    completion: Completion = "completion",
    predictions: Predictions = None,
    details: Details = False,
    as_json: Json = False,
) -> None:
    """Score an adapter and its base on held-out rows: ROUGE, BLEU, exact match, F1, stop rate.

    Where the adapter's prompt carries no instruction, the base is asked with every wording of the
    task, and its best counts.
    """
    from polygraft.trainer.errors import TrainerError

    if (data is None) == (task is None):
        raise CommandFailed("give --data FILE or --task builtin:<name>.", ExitCode.USAGE)
    if task is not None and split not in ("validation", "test"):
        raise CommandFailed("--split must be validation or test.", ExitCode.USAGE)
    try:
        candidate = _candidate(adapter, server, base)
        source = _source(candidate, data, task, template, completion)
        from polygraft.trainer.scoring import score_candidate

        subjects = score_candidate(candidate, source, split)
        rows = source.splits.named()[split]
    except TrainerError as error:
        raise CommandFailed(str(error), ExitCode(error.exit_code)) from error
    if predictions is not None:
        _write(predictions, source, split, subjects)
    if as_json:
        scores = [subject.as_json() for subject in subjects]
        result = {"digest": candidate.digest, "split": split, "subjects": scores}
        typer.echo(json.dumps({**result, "difference": _differences(subjects, rows)}))
    else:
        _show(candidate, subjects, rows, details)


def _candidate(adapter: str, server: str | None, base: str | None) -> Candidate:
    if server is not None:
        from polygraft.trainer.remote import connect_candidate

        return connect_candidate(server, adapter)
    if not Path(adapter).is_dir():
        raise CommandFailed(
            f"{adapter} is no directory; give --server to score a reference.", ExitCode.USAGE
        )
    from polygraft.trainer.local import load_candidate

    return load_candidate(Path(adapter), base)


def _source(
    candidate: Candidate, data: Path | None, task: str | None, template: str, completion: str
) -> Source:
    from polygraft.trainer.config import Data
    from polygraft.trainer.source import load_source, scored_rows

    if task is not None:
        return load_source(Data(task=task))
    assert data is not None
    return scored_rows(data, candidate.prompt, template, completion)


def _write(path: Path, source: Source, split: str, subjects: list[Subject]) -> None:
    from polygraft.trainer.scoring import predictions

    rows = predictions(source.splits.named()[split], subjects)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _differences(subjects: list[Subject], rows: list[Example]) -> dict[str, object]:
    from polygraft.trainer.scoring import compare

    compared = compare(subjects, [row.group for row in rows])
    return {name: {"value": s.value, "ci95": s.interval} for name, s in compared.items()}


def _show(
    candidate: Candidate, subjects: list[Subject], rows: list[Example], details: bool
) -> None:
    from rich.console import Console

    from polygraft.trainer.scoring import (
        compare,
        confusion_table,
        literal_text,
        one_word_repeated,
        score_table,
    )

    console = Console(highlight=False)
    shown = [*subjects, one_word_repeated(rows)] if details else subjects
    title = f"{subjects[0].rows} held-out rows, 95 % bootstrap intervals"
    console.print(score_table(shown, title, details=details))
    for name, score in compare(subjects, [row.group for row in rows]).items():
        if name in ("rougeL", "exact_match", "accuracy"):
            low, high = score.interval or (0.0, 0.0)
            line = f"adapter over base, {name}: {score.value:+.1f} [{low:+.1f}, {high:+.1f}]"
            console.print(line, markup=False)
    for subject in subjects if details else []:
        if subject.classification is not None:
            console.print(confusion_table(subject))
    asked = literal_text(subjects[0].prompt)
    if asked:
        console.print(f"the base was asked: {asked}", markup=False, soft_wrap=True)
    if candidate.digest:
        console.print(f"version {candidate.digest}", soft_wrap=True)
    for score in subjects[0].scores:
        console.print(score.signature, style="dim", soft_wrap=True)
