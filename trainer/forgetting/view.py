"""Forgetting as a table for the terminal and as bars for a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.drawing import new_figure, save_figure

if TYPE_CHECKING:
    from rich.table import Table

    from polygraft.trainer.forgetting.record import Forgetting, Skill

_COLOURS = {"before": "tab:gray", "attached": "tab:orange", "detached": "tab:blue"}


def forgetting_table(forgetting: Forgetting) -> Table:
    """Skills down; before, attached, detached and the drop with its interval across."""
    from rich.table import Table

    title = f"{forgetting.change} on {forgetting.base}: exact match on old skills"
    table = Table(title=title, title_justify="left")
    table.add_column("skill")
    for heading in ("rows", "before", "attached", "detached", "drop"):
        table.add_column(heading, justify="right")
    for skill in (*forgetting.skills, forgetting.total):
        style = "red" if skill.has_fallen else ""
        table.add_row(*_cells(skill), style=style, end_section=skill is forgetting.skills[-1])
    return table


def _cells(skill: Skill) -> tuple[str, ...]:
    scores = (skill.before, skill.attached, skill.detached)
    low, high = skill.drop.interval or (0.0, 0.0)
    drop = f"{skill.drop.value:.1f} [{low:.1f}, {high:.1f}]"
    values = (f"{score.value:.1f}" for score in scores)
    return (skill.name, str(len(skill.before.rows)), *values, drop)


def plot_forgetting(
    records: Sequence[dict[str, Any]], target: Path | io.StringIO, title: str
) -> None:
    """Bars per skill of each record (the JSON of a `Forgetting`): before, attached, detached.

    As PNG into a file, as SVG into a buffer.
    """
    figure = new_figure(width=9, height=0.6 + 3.2 * len(records))
    grid = figure.subplots(len(records), 1, squeeze=False)
    for axes, record in zip(grid[:, 0], records, strict=True):
        skills = [record["all"], *record["skills"]]
        for number, (kind, colour) in enumerate(_COLOURS.items()):
            x = [place + 0.27 * (number - 1) for place in range(len(skills))]
            values = [skill[kind] for skill in skills]
            axes.bar(x, values, width=0.27, color=colour, label=kind)
        names = [f"{s['skill']}{' *' if s['fallen'] else ''}" for s in skills]
        axes.set_xticks(range(len(skills)), names, rotation=40, ha="right", fontsize=8)
        axes.set(ylabel="exact match (%)", ylim=(0, 128), yticks=range(0, 101, 20))
        axes.set_title(record["change"], fontsize=9)
        axes.legend(fontsize=8, ncols=3, loc="upper right")
    figure.suptitle(f"{title} (* fallen by more than chance)", fontsize=10)
    save_figure(figure, target, title)
