"""`polygraft report`: one page about one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of complete runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; none: report.html in the first run.")
    ] = None,
) -> None:
    """Write a self-contained HTML page: verdict, scores with intervals, confusion, loss, cost,
    best, worst and random answers. It needs no network and no scripts.
    """
    from polygraft.trainer.report.page import write_page
    from polygraft.trainer.report.verdict import verdict
    from polygraft.trainer.run_listing import read_run

    found = [read_run(run) for run in runs]
    target = out or runs[0] / "report.html"
    write_page(found, target)
    for run in found:
        typer.echo(f"{run.directory.name}: {verdict(run).text}", err=True)
    typer.echo(str(target))
