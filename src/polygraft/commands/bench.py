"""`polygraft bench`: task definitions of lm-eval on local data, through a server or here."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.connection import JsonOption, print_json

if TYPE_CHECKING:
    from polygraft.trainer.bench.data import BenchTask
    from polygraft.trainer.bench.results import SuiteResult
    from polygraft.trainer.bench.running import Options
    from polygraft.trainer.bench.scored_model import Advance, ScoredModel

app = typer.Typer(add_completion=False)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the original data; mini-* needs none.")
]
Target = Annotated[
    str, typer.Option(help="local:RUN, local:BASE or grpc://host:port.", metavar="TARGET")
]
AdapterName = Annotated[
    str | None, typer.Option("--adapter", help="On a server: name, name@alias, name@7 ...")
]
Base = Annotated[
    str | None, typer.Option("--base", help="Where a local adapter names its base by a folder.")
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="Only this task of the suite; may be repeated.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="First rows of each task only.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Put each question into the base's chat template. Unset: for mini-* where it has one.",
    ),
]


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="glue, superglue, mmlu, bigbench; mini-glue, mini-superglue, mini-mmlu, "
            "mini-bigbench."
        ),
    ],
    data_dir: DataDir = None,
    target: Target = "local:builtin:nano",
    adapter: AdapterName = None,
    base: Base = None,
    task: Tasks = None,
    limit: Limit = None,
    shots: Annotated[int, typer.Option(min=0, help="Examples to show before each question.")] = 0,
    chat: Chat = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the results, one directory each.")
    ] = Path("runs/bench"),
    as_json: JsonOption = False,
) -> None:
    """Score a base, a run or a served adapter on a benchmark suite, without any network.

    Definitions are those of the installed lm-eval, the data is yours. The mini-* suites are made
    here, with the same fields, and are no benchmark that others report.
    """
    from polygraft.trainer.bench.data import find_tasks
    from polygraft.trainer.bench.results import SuiteResult, write_result
    from polygraft.trainer.bench.running import Options, run_tasks
    from polygraft.trainer.bench.suites import check_suite, task_folder
    from polygraft.trainer.bench.targets import open_target

    check_suite(suite)
    task_folder()
    found = find_tasks(suite, data_dir, task or [], with_shots=shots > 0)
    for sentence in found.missing:
        typer.echo(sentence, err=True)
    model = open_target(target, adapter, base)
    options = Options(limit, shots, wants_chat(chat, [suite], model))
    started = time.monotonic()
    with requests(suite, found.tasks, options) as advance:
        runs = run_tasks(model, found.tasks, options, advance)
    result = SuiteResult(
        suite, model.facts, options, runs, found.missing, time.monotonic() - started
    )
    directory = write_result(result, out)
    if as_json:
        print_json({**result.as_json(), "directory": str(directory)})
    else:
        _show(result, directory)


def wants_chat(asked: bool | None, suites: list[str], model: ScoredModel) -> bool:
    """As asked; else for suites of ours on a base that has a chat template."""
    if asked is not None:
        return asked
    return model.facts.has_chat_template and all(suite.startswith("mini-") for suite in suites)


def requests(
    description: str, tasks: Sequence[BenchTask], options: Options
) -> AbstractContextManager[Advance]:
    """A bar over the requests of the tasks, if anybody is there to see it."""
    from polygraft.trainer.bench.progress import request_bar
    from polygraft.trainer.bench.running import count_requests

    total = count_requests(tasks, options)
    return request_bar(description, total, show=sys.stderr.isatty())


def _show(result: SuiteResult, directory: Path) -> None:
    from rich.console import Console

    from polygraft.trainer.bench.results import result_table

    console = Console(highlight=False)
    console.print(result_table(result))
    if result.suite.startswith("mini-"):
        console.print("made here from the bundled world: compare with nothing but itself")
    if result.runs.cut_texts:
        console.print(f"{result.runs.cut_texts} texts lost their beginning to fit the window")
    for run in result.runs.tasks:
        console.print(f"{run.task.name}: {run.scores[0].signature}", style="dim", soft_wrap=True)
    console.print(str(directory), soft_wrap=True)
