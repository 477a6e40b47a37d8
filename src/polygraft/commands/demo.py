"""`polygraft demo`: the whole system at work, on the bundled base and made data."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

app = typer.Typer(add_completion=False)

KEPT = Path("demo-out")
PAGE = Path("demo-report.html")

Keep = Annotated[bool, typer.Option("--keep", help=f"Leave adapters, plots and logs in ./{KEPT}.")]
Base = Annotated[str, typer.Option("--base", help="The base model to serve and to train on.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")]


@app.command()
def demo(keep: Keep = False, base: Base = "builtin:nano", as_json: Json = False) -> None:
    """Serve, train two adapters, upload them, ask them all at once, swap one under load, score.

    Takes about a minute on two cores. Every number is measured, on rows that no training saw; the
    page about them stays, demo-report.html here or with --keep in ./demo-out.
    """
    if keep and KEPT.exists():
        raise CommandFailed(f"./{KEPT} exists; move it away first.", ExitCode.USAGE)
    if keep:
        measured = _run(KEPT, base, KEPT / "report.html", as_json)
    else:
        with tempfile.TemporaryDirectory(prefix="polygraft-demo-") as directory:
            measured = _run(Path(directory) / "demo", base, PAGE, as_json)
    if as_json:
        typer.echo(json.dumps(measured))


def _run(output: Path, base: str, page: Path, as_json: bool) -> dict[str, Any]:
    from rich.console import Console

    from polygraft.trainer.demo.recipes import THREADS
    from polygraft.trainer.demo.server_process import ServerProcess
    from polygraft.trainer.errors import Interrupted, TrainerError

    started, console = time.monotonic(), Console(stderr=as_json)
    (output / "runs").mkdir(parents=True)
    store, log = output / "store", output / "server.log"
    try:
        with ServerProcess(base=base, store=store, log=log, threads=THREADS) as process:
            with console.status("loading torch, transformers, peft", spinner="line"):
                from polygraft.trainer.demo.story import Demo
            return Demo(console, output, base, output == KEPT, page, process, started).run()
    except Interrupted:
        raise CommandFailed("stopped, the server too.", ExitCode.INTERRUPTED) from None
    except TrainerError as error:
        raise CommandFailed(str(error), ExitCode(error.exit_code)) from error
