"""`polygraft base`: build a base model from its recipe, verify the one that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def base() -> None:
    """Build the bundled base model, or check its files."""


@app.command()
def build(
    preset: Annotated[str, typer.Option(help="nano (1 M parameters) or small (5 M).")] = "nano",
    seed: Annotated[int, typer.Option(help="Decides corpus, tokenizer, order and start.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="New or empty folder for the base.", show_default="runs/PRESET-seedN"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="One cycle of so many steps, not the preset's.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 2,
    compile: Annotated[
        bool, typer.Option(help="Compile the step (needs a C++ compiler; 2.6 times faster).")
    ] = True,
    save_every: Annotated[
        int, typer.Option(min=0, help="Save the state every so many steps; 0: never.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUT/state.pt.")] = False,
) -> None:
    """Make a base from random weights and made text; nano takes about 45 minutes on two cores."""
    import shutil
    from dataclasses import replace

    from polygraft.trainer.base.preset import PRESETS

    if preset not in PRESETS:
        raise CommandFailed(
            f"no preset {preset!r}; choose one of {', '.join(PRESETS)}", ExitCode.USAGE
        )
    out = out or Path("runs") / f"{preset}-seed{seed}"
    if out.exists() and not resume and (not out.is_dir() or any(out.iterdir())):
        raise CommandFailed(
            f"{out} exists and is not empty; choose a new folder or pass --resume", ExitCode.USAGE
        )
    if compile and not (shutil.which("g++") or shutil.which("clang++")):
        raise CommandFailed(
            "no C++ compiler (g++ or clang++) found; install one, or pass --no-compile and wait "
            "2.6 times longer",
            ExitCode.USAGE,
        )
    chosen = PRESETS[preset]
    if steps is not None:
        chosen = replace(chosen, cycles=(steps,))

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from polygraft.trainer.base.build import OrphanTokensError
    from polygraft.trainer.base.build import build as build_base

    torch.set_num_threads(threads)
    console = Console(stderr=True)
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("corpus and tokenizer", total=chosen.steps)

        def on_progress(step: int, loss: float) -> None:
            progress.update(bar, completed=step, description=f"loss {loss:6.3f}")
            if step % 500 == 0:
                progress.console.print(f"step {step}: loss {loss:.3f}")

        try:
            report = build_base(
                out,
                preset,
                chosen,
                seed=seed,
                compiled=compile,
                on_progress=on_progress,
                save_every=save_every,
            )
        except OrphanTokensError as error:
            raise CommandFailed(str(error), ExitCode.TRAINING) from error
    console.print(f"{out}: mix exact match {report.mix['mean']:.1f} %; see {out / 'BASE_CARD.md'}")


@app.command()
def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="A built base; without it, the bundled one.")
    ] = None,
) -> None:
    """Check the files of a base against its SHA256SUMS."""
    from polygraft.adapters.fingerprint import resolve_base
    from polygraft.trainer.base.files import BaseFilesError
    from polygraft.trainer.base.files import verify as verify_files

    folder = folder or resolve_base("builtin:nano")
    try:
        hashes = verify_files(folder)
    except BaseFilesError as error:
        raise CommandFailed(str(error), ExitCode.DATA) from error
    typer.echo(f"{folder}: {len(hashes)} files match; weights {hashes['model.safetensors']}")
