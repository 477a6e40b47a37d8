"""`polygraft merge`: an adapter into the weights of its base."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polygraft.commands.failure import CommandFailed, ExitCode

app = typer.Typer(add_completion=False)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run or PEFT directory.")],
    out: Annotated[Path, typer.Option("--out", help="Model directory to write; must not exist.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base, where the adapter does not name it.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the written weights: fp32, bf16 or fp16.")
    ] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Merge an adapter into its base, prove that the logits are the same, write a plain model.

    Refused with exit code 5, and nothing written: soft prompts, prefixes and adapter layers, which
    are no change of weights, and a merge that computes something else.
    """
    if not run.is_dir():
        raise CommandFailed(f"{run} is not a directory.", ExitCode.USAGE)
    if dtype not in ("fp32", "bf16", "fp16"):
        raise CommandFailed(f"--dtype {dtype} is none of fp32, bf16, fp16.", ExitCode.USAGE)
    from polygraft.trainer.merge import merge as merge_into_base

    merged = merge_into_base(run, out, base, dtype=dtype)  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps(asdict(merged), default=str))
        return
    typer.echo(f"{merged.directory}: {merged.base} with the adapter in its weights")
    typer.echo(merged.sentence())
