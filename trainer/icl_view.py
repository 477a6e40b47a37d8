"""In-context learning as a table and as a picture: the score against the shots, and their price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.icl import ShotScore

if TYPE_CHECKING:
    from rich.table import Table


def shots_table(scores: Sequence[ShotScore], beside: Sequence[ShotScore], title: str) -> Table:
    """Numbers of shots down, then the adapters."""
    from rich.table import Column, Table

    right: dict[str, Any] = {"justify": "right"}
    table = Table(
        Column("asked", no_wrap=True), Column("shots", **right),
        Column(scores[0].metric, **right), Column("draws", **right),
        Column("tokens", **right), Column("window", **right),
        Column("too long", **right), Column("ms", **right),
        title=title, title_justify="left",
    )  # fmt: skip
    for score in scores:
        table.add_row(score.name, str(score.shots), *_cells(score))
    for score in beside:
        table.add_row(score.name, "-", *_cells(score))
    return table


def _cells(score: ShotScore) -> list[str]:
    rows = score.draws[0].subject.rows
    spread = f"±{score.spread:.1f}" if len(score.draws) > 1 else ""
    time = "-" if score.milliseconds is None else f"{score.milliseconds:.0f}"
    return [
        f"{score.mean:.1f}{spread}",
        str(len(score.draws)),
        f"{score.prompt_tokens:.0f}",
        f"{score.window_share:.0f} %",
        f"{score.too_long:.0f} of {rows}" if score.too_long else "0",
        time,
    ]


def plot_shots(scores: Sequence[ShotScore], beside: Sequence[ShotScore], path: Path) -> None:
    """Score with its spread and, as bars, the share of the window; adapters as lines. PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(scores))
    window = axes.twinx()
    bars = window.bar(
        places, [score.window_share for score in scores], width=0.5, color="0.88", zorder=0
    )
    window.bar_label(bars, [_bar_text(score) for score in scores], fontsize=8, color="0.4")
    window.axhline(100, color="0.6", linewidth=1, linestyle=":")
    window.set(ylabel=f"prompt, % of a window of {scores[0].window} tokens", ylim=(0, _top(scores)))
    axes.set_zorder(window.get_zorder() + 1)
    axes.patch.set_visible(False)
    asked = [place for place in places if _was_asked(scores[place])]
    axes.errorbar(
        asked,
        [scores[place].mean for place in asked],
        yerr=[scores[place].spread for place in asked],
        fmt="o-",
        capsize=3,
        color="tab:blue",
        label=f"{scores[0].name}, in context",
    )
    for number, score in enumerate(beside):
        axes.axhline(score.mean, color=f"C{number + 1}", linestyle="--", label=score.name)
    axes.set(
        xlabel="solved rows in the prompt",
        ylabel=f"{scores[0].metric} (%)",
        ylim=(0, 105),
        title="In-context learning and what it takes of the context window",
    )
    axes.set_xticks(list(places), [str(score.shots) for score in scores])
    figure.legend(loc="outside lower center", ncols=1 + len(beside), fontsize=9)
    figure.savefig(path, dpi=120)


def _was_asked(score: ShotScore) -> bool:
    """Not where no row fits: that says nothing of the shots."""
    return score.too_long < score.draws[0].subject.rows


def _bar_text(score: ShotScore) -> str:
    text = f"{score.window_share:.0f} %"
    return f"{text}\n{score.too_long:.0f} rows do not fit" if score.too_long else text


def _top(scores: Sequence[ShotScore]) -> float:
    return 1.25 * max(100.0, *(score.window_share for score in scores))
