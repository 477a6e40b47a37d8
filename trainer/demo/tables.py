"""The demo's tables. Formats what was measured, measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from polygraft.trainer.data import Example
from polygraft.trainer.demo.prometheus import Series, mean, total
from polygraft.trainer.scoring import Subject


def answer_table(shown: Sequence[tuple[Example, Mapping[str, str]]]) -> Table:
    """Rows (example, name to answer); an answer equal to the reference is green."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False, expand=True)
    table.add_column("prompt", ratio=1)
    table.add_column("answers", ratio=1)
    for row, answers in shown:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column()
        for name, text in answers.items():
            grid.add_row(name, Text(text, "green" if text.strip() == row.completion else ""))
        grid.add_row("wanted", Text(row.completion, "dim"))
        table.add_row(Text("\n".join(row.variables.values())), grid)
    return table


def score_columns(subjects: Sequence[Subject]) -> Table:
    """Metrics down, subjects across."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("held-out score")
    for subject in subjects:
        table.add_column(subject.name, justify="right")
    for metric in ("rouge1", "rouge2", "rougeL", "bleu", "exact_match", "stop_rate"):
        values = [subject.value(metric) for subject in subjects]
        table.add_row(metric, *("n/a" if v is None else f"{v:.1f}" for v in values))
    return table


def metric_table(series: Series) -> Table:
    """The few series that tell what happened."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric, from the server's /metrics")
    table.add_column("value", justify="right")
    for kind in ("base", "lora", "soft_prompt"):
        count = total(series, "polygraft_answers_total", adapter_kind=kind)
        table.add_row(f"answers, {kind}", f"{count:.0f}")
    cancelled = total(series, "polygraft_answers_total", finish_reason="cancelled")
    failed = total(series, "polygraft_answers_total", finish_reason="error")
    table.add_row("answers cancelled / failed", f"{cancelled:.0f} / {failed:.0f}")
    table.add_row("output tokens", f"{total(series, 'polygraft_output_tokens_total'):.0f}")
    for name in ("time_to_first_token", "inter_token_latency"):
        value = 1000 * mean(series, f"polygraft_{name}_seconds")
        table.add_row(f"{name.replace('_', ' ')}, mean", f"{value:.1f} ms")
    loads = total(series, "polygraft_adapter_loads_total", tier="device")
    table.add_row("adapter versions loaded to the device", f"{loads:.0f}")
    load_ms = 1000 * mean(series, "polygraft_adapter_load_seconds")
    table.add_row("time to load one, mean", f"{load_ms:.1f} ms")
    return table
