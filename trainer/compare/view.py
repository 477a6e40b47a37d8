"""A comparison as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from polygraft.trainer.compare.result import OLD_LOST, ArmResult
from polygraft.trainer.compare.run import Outcome
from polygraft.trainer.memory import KINDS

if TYPE_CHECKING:
    from rich.table import Table

SHORT = {"exact_match": "EM", "rougeL": "ROUGE-L", "accuracy": "accuracy"}


def tables(outcome: Outcome) -> Iterator[Table]:
    """One per group of arms, then what is new in the rows apart, then memory by kind."""
    for group in dict.fromkeys(result.arm.group for result in outcome.results.values()):
        yield _group_table(group, [r for r in outcome.results.values() if r.arm.group == group])
    apart = [result for result in outcome.results.values() if result.axes]
    if apart:
        yield _axes_table(apart)
    accounted = [result for result in outcome.results.values() if result.memory]
    if accounted:
        yield _memory_table(accounted)


def cells(result: ArmResult) -> dict[str, str]:
    """Heading to text: one line of the table, on the terminal and in the page."""
    if not result.records:
        return {"arm": result.name, "score": f"failed: {'; '.join(result.problems)}"}
    shown = {
        "arm": result.name,
        "score": _score(result),
        "EM": _estimate(result, "exact_match"),
        "old skills lost": _lost(result),
        "parameters": f"{result.cost('trained_parameters') or 0:,.0f}",
        "file": _bytes(result.cost("adapter_bytes")),
        "peak MB, foretold / measured": _peak(result),
        "train s": f"{result.cost('training_seconds') or 0:.0f}",
        "min": f"{result.cost('minutes') or 0:.2f}",
    }
    more = "; ".join(f"{task} {result.rows('auto', task).estimate()}" for task in result.tasks[1:])  # type: ignore[union-attr]
    notes = [result.arm.note, more, _context(result)]
    if result.fallen:
        notes.append(f"fallen: {', '.join(result.fallen)}")
    if result.problems:
        notes.append(f"{len(result.problems)} failed: {result.problems[0]}")
    return {**shown, "": "; ".join(note for note in notes if note)}


def _group_table(group: str, results: list[ArmResult]) -> Table:
    from rich.table import Table

    table = Table(title=group, title_justify="left")
    headings = list(dict.fromkeys(key for result in results for key in cells(result)))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("arm", "") else "right")
    for result in results:
        row = cells(result)
        table.add_row(*(row.get(heading, "") for heading in headings))
    return table


def _axes_table(results: list[ArmResult]) -> Table:
    from rich.table import Table

    table = Table(title="what is new in the rows, apart", title_justify="left")
    axes = results[0].axes
    for heading in ("arm", *axes):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for result in results:
        found = [result.axis(axis) for axis in axes]
        table.add_row(result.name, *(str(r.estimate()) if r else "-" for r in found))
    return table


def _memory_table(results: list[ArmResult]) -> Table:
    from rich.table import Table

    table = Table(title="memory of a step, MB", title_justify="left")
    headings = ("arm", *KINDS, "peak", "measured", "off by")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for result in results:
        table.add_row(*memory_cells(result))
    return table


def memory_cells(result: ArmResult) -> list[str]:
    """Arm, each kind and the peak as foretold, the peak as measured, how far apart."""
    memory: Any = result.memory
    foretold = [f"{memory['predicted'][kind] / 1e6:.1f}" for kind in (*KINDS, "peak")]
    real = memory["measured_peak"]
    measured = [f"{real / 1e6:.1f}", f"{memory['error_percent']:+.1f} %"] if real else ["-", "-"]
    return [result.name, *foretold, *measured]


def _score(result: ArmResult) -> str:
    assert result.own_task is not None
    metric = result.metric_of(result.own_task)
    return f"{SHORT.get(metric, metric)} {_estimate(result, metric)}"


def _estimate(result: ArmResult, metric: str) -> str:
    rows = result.rows(metric)
    return "-" if rows is None else str(rows.estimate())


def _lost(result: ArmResult) -> str:
    rows = result.rows(OLD_LOST)
    return "-" if rows is None else str(rows.estimate())


def _bytes(size: float | None) -> str:
    return f"{(size or 0) / 1e3:,.0f} kB"


def _peak(result: ArmResult) -> str:
    memory = result.memory
    if memory is None:
        return "-"
    real = memory["measured_peak"]
    measured = f"{real / 1e6:.1f}" if real else "-"
    return f"{memory['predicted']['peak'] / 1e6:.1f} / {measured}"


def _context(result: ArmResult) -> str:
    context = result.records[0].get("context")
    if not context:
        return ""
    return (
        f"{context['window_share']:.0f} % of the window, {context['rows_too_long']:g} rows too long"
    )
