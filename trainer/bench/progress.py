"""A bar for long evaluations, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from polygraft.trainer.bench.scored_model import Advance


@contextmanager
def request_bar(description: str, total: int, *, show: bool) -> Iterator[Advance]:
    """Yields what to call as requests are answered."""
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    # Why the file by name: lm-eval's own bars are silenced by exchanging sys.stderr.
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, TextColumn("eta"), Remaining(compact=True), console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
