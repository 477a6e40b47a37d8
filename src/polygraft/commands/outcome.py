"""What `polygraft compare` and `polygraft sweep` have in common: seeds, the work, what is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.trainer.compare.recipe import Comparison
    from polygraft.trainer.compare.run import Outcome


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers, none twice."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise CommandFailed(f"--seeds {text}: give numbers such as 0,1,2.", ExitCode.USAGE)
    return tuple(dict.fromkeys(int(word) for word in words))


def run(comparison: Comparison, folder: Path, parallel: int | None) -> Outcome:
    """Do the jobs under a progress bar."""
    from rich.console import Console

    from polygraft.trainer.compare.progress import JobBar
    from polygraft.trainer.compare.run import run_comparison

    at_once = parallel or min(2, os.cpu_count() or 1)
    with JobBar(Console(stderr=True)) as bar:
        return run_comparison(comparison, folder, parallel=at_once, monitor=bar)


def finish(outcome: Outcome, *, as_json: bool) -> None:
    """Write the page, print the tables and verdicts, and fail where a target was missed."""
    from polygraft.trainer.compare.page import write_page

    page = write_page(outcome)
    if as_json:
        typer.echo(json.dumps(outcome.as_json()))
    else:
        _show(outcome, page)
    if not any(result.records for result in outcome.results.values()):
        raise CommandFailed("every arm failed.", ExitCode.TRAINING)
    missed = [verdict for verdict in outcome.verdicts if not verdict.reached]
    if missed:
        raise CommandFailed(
            f"{len(missed)} of {len(outcome.verdicts)} targets were not reached.", ExitCode.REFUSED
        )


def _show(outcome: Outcome, page: Path) -> None:
    from rich.console import Console

    from polygraft.trainer.compare.view import tables

    console = Console(highlight=False)
    for table in tables(outcome):
        console.print(table)
    for verdict in outcome.verdicts:
        style = "green" if verdict.reached else "bold red"
        console.print(verdict.line(), style=style, markup=False, soft_wrap=True)
    console.print(f"{outcome.minutes:.1f} minutes; page {page}", markup=False, soft_wrap=True)
