"""`polygraft forget`: what a base still can with a change attached, and detached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

Changes = Annotated[list[Path], typer.Argument(help="Run or adapter directories.")]
General = Annotated[
    str,
    typer.Option(
        "--general", help="builtin:mix, or JSONL or CSV with skill, prompt and completion."
    ),
]
Rows = Annotated[int, typer.Option(min=1, help="Rows of each skill.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the bundled mix.")]
BasePath = Annotated[
    str | None, typer.Option("--base", help="The base, where the adapter does not name it.")
]
Picture = Annotated[Path | None, typer.Option("--plot", help="Draw the bars into this PNG file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def forget(
    changes: Changes,
    general: General = "builtin:mix",
    rows: Rows = 24,
    seed: Seed = 0,
    base: BasePath = None,
    plot: Picture = None,
    as_json: Json = False,
) -> None:
    """Ask for the base's old skills: before the change, with it attached, with it detached.

    A skill has fallen if it lost 10 points or more and the 95 % interval of the loss is above 0.
    Detached, every logit is compared with the base's to the bit; exit code 5 where one differs.
    """
    from polygraft.commands.failure import CommandFailed, ExitCode
    from polygraft.trainer.forgetting.general import load_general

    for change in changes:
        if not change.is_dir():
            raise CommandFailed(f"{change} is no directory of a run or adapter.", ExitCode.USAGE)
    asked = load_general(general, per_skill=rows, seed=seed)

    from polygraft.trainer.forgetting.measure import forget as measure
    from polygraft.trainer.forgetting.view import forgetting_table, plot_forgetting

    found = [measure(change, asked, base) for change in changes]
    records = [one.as_json() for one in found]
    if plot is not None:
        plot_forgetting(records, plot, f"old skills of {found[0].base}")
    if as_json:
        typer.echo(json.dumps(records))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for one in found:
            console.print(forgetting_table(one))
            console.print(one.sentence(), markup=False, soft_wrap=True)
    changed = [one.change for one in found if not one.bit_equal]
    if changed:
        raise CommandFailed(
            f"detached, {', '.join(changed)} does not give the base's logits to the bit.",
            ExitCode.REFUSED,
        )
