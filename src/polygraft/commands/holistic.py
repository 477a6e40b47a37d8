"""`polygraft holistic`: one model on several axes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polygraft.commands.bench import (
    AdapterName,
    Base,
    Chat,
    DataDir,
    Limit,
    Target,
    requests,
    wants_chat,
)
from polygraft.commands.connection import JsonOption, print_json

app = typer.Typer(add_completion=False)

DEFAULT = ["mini-glue", "mini-superglue", "mini-mmlu", "mini-bigbench"]


@app.command()
def holistic(
    suites: Annotated[
        list[str] | None, typer.Argument(help="As for `polygraft bench`; none: all of mini-*.")
    ] = None,
    data_dir: DataDir = None,
    target: Target = "local:builtin:nano",
    adapter: AdapterName = None,
    base: Base = None,
    limit: Limit = None,
    chat: Chat = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML page to write; the JSON goes beside it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, calibration, robustness, fairness and efficiency of a base, a run or a served
    adapter. Bias and toxicity are not measured, and the report says so.
    """
    from polygraft.trainer.bench.data import find_tasks
    from polygraft.trainer.bench.holistic import measure, plan
    from polygraft.trainer.bench.holistic_page import (
        efficiency_line,
        holistic_table,
        not_measured_line,
        write_holistic_page,
    )
    from polygraft.trainer.bench.running import Options
    from polygraft.trainer.bench.suites import check_suite, task_folder
    from polygraft.trainer.bench.targets import open_target

    chosen = suites or DEFAULT
    task_folder()
    found = [find_tasks(check_suite(suite), data_dir, [], with_shots=False) for suite in chosen]
    for sentence in (sentence for one in found for sentence in one.missing):
        typer.echo(sentence, err=True)
    model = open_target(target, adapter, base)
    planned = plan([task for one in found for task in one.tasks], limit)
    options = Options(limit=limit, chat=wants_chat(chat, chosen, model))
    with requests("holistic", planned.all(), options) as advance:
        report = measure(model, planned, options, advance)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_holistic_page(report, out)
        text = json.dumps(report.as_json(), indent=2, ensure_ascii=False)
        out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        print_json(report.as_json())
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(holistic_table(report))
    console.print(efficiency_line(report))
    console.print(not_measured_line())
    if out is not None:
        console.print(str(out), soft_wrap=True)
