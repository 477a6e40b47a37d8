"""A chain as a table and as a picture: states against test sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.chain.run import ChainResult
from polygraft.trainer.score import Score

if TYPE_CHECKING:
    from rich.table import Table


def chain_table(result: ChainResult) -> Table:
    """States down, test sets across, each with its 95 % interval and exact match."""
    from rich.table import Column, Table

    right: dict[str, Any] = {"justify": "right"}
    headings = []
    for test in result.tests:
        headings.append(Column(f"{test.name}: {test.metric}", **right))
        if test.metric != "exact_match":
            headings.append(Column("exact match", **right))
    table = Table("state", *headings, title=result.chain.name, title_justify="left")
    for state in result.states:
        cells = []
        for test in result.tests:
            cells.append(_shown(state.score(test)))
            if test.metric != "exact_match":
                cells.append(f"{state.scores[test.name].value('exact_match'):.1f}")
        table.add_row(state.name, *cells)
    return table


def change_lines(result: ChainResult) -> list[str]:
    """One sentence per comparison."""
    lines = []
    for state, other, test, score in result.changes():
        low, high = score.interval or (0.0, 0.0)
        verdict = "no difference shown" if low <= 0 <= high else "better" if low > 0 else "worse"
        lines.append(
            f"on {test}: {state} against {other}: {score.metric} {score.value:+.1f} "
            f"[{low:+.1f}, {high:+.1f}], {verdict}"
        )
    return lines


def plot_chain(result: ChainResult, path: Path) -> None:
    """Grouped bars with intervals, PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(result.tests)
    for number, test in enumerate(result.tests):
        scores = [state.score(test) for state in result.states]
        places = [place + number * width for place in range(len(scores))]
        bars = axes.bar(
            places,
            [score.value or 0.0 for score in scores],
            width=0.94 * width,
            yerr=[[_below(s) for s in scores], [_above(s) for s in scores]],
            capsize=2,
            error_kw={"elinewidth": 1, "ecolor": "0.3"},
            label=f"test set of {test.name} ({test.metric})",
        )
        labels = [f"{score.value or 0.0:.0f}" for score in scores]
        axes.bar_label(bars, labels, fontsize=8, padding=2)
    middle = [place + 0.4 - width / 2 for place in range(len(result.states))]
    axes.set_xticks(middle, [state.name.replace(", ", ",\n") for state in result.states])
    axes.set(
        ylabel="score (%)",
        ylim=(0, 118),
        title=f"{result.chain.name}: what is kept, round by round",
    )
    axes.legend(loc="upper left", ncols=len(result.tests), fontsize=9)
    figure.savefig(path, dpi=120)


def _shown(score: Score) -> str:
    if score.value is None:
        return "n/a"
    low, high = score.interval or (score.value, score.value)
    return f"{score.value:.1f} [{low:.1f}, {high:.1f}]"


def _below(score: Score) -> float:
    return max(0.0, (score.value or 0.0) - score.interval[0]) if score.interval else 0.0


def _above(score: Score) -> float:
    return max(0.0, score.interval[1] - (score.value or 0.0)) if score.interval else 0.0
