"""The report on several axes as a table and as one page that needs no network and no scripts."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.bench.holistic import NOT_MEASURED, Holistic, Scenario
from polygraft.trainer.bench.perturbation import ROBUSTNESS
from polygraft.trainer.bench.results import shown

if TYPE_CHECKING:
    from rich.table import Table

    from polygraft.trainer.score import Score

HEADINGS = ("task", "rows", "accuracy", "ECE", "worst of 4", *ROBUSTNESS, "rare names", "named")


def holistic_table(report: Holistic) -> Table:
    """One line per task and one for their mean."""
    from rich.table import Table

    table = Table(title=title(report), title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for cells in table_rows(report):
        table.add_row(*cells)
    return table


def table_rows(report: Holistic) -> list[list[str]]:
    """Cells under `HEADINGS`; the last line is the mean over the tasks."""
    lines = [_line(one) for one in report.scenarios]
    values = report.scenarios
    means = [
        report.mean([one.accuracy.value for one in values]),
        report.mean([one.calibration.error if one.calibration else None for one in values]),
        report.mean([_value(one.worst) for one in values]),
        *(report.mean([_value(one.changed.get(name)) for one in values]) for name in ROBUSTNESS),
        report.mean([_value(one.fairness) for one in values]),
    ]
    accuracy, ece, *rest = means
    cells = ["mean over tasks", str(sum(one.rows for one in values)), _number(accuracy)]
    cells += ["n/a" if ece is None else f"{ece:.3f}", *map(_number, rest[:-1])]
    return [*lines, [*cells, "n/a" if rest[-1] is None else f"{rest[-1]:+.1f}", ""]]


def title(report: Holistic) -> str:
    """Who was measured."""
    what = report.facts.adapter or "base alone"
    return f"{report.facts.base}, {what[:19]}"


def efficiency_line(report: Holistic) -> str:
    """Speed and size in one sentence."""
    one = report.efficiency
    parts = [
        f"{one.tokens_per_second:,.0f} tokens/s",
        f"{one.milliseconds_per_question:.1f} ms per question",
    ]
    if one.weights_megabytes is not None:
        parts.append(f"weights {one.weights_megabytes:.2f} MB")
    if one.adapter_megabytes is not None:
        parts.append(f"adapter {one.adapter_megabytes:.3f} MB")
    return "efficiency: " + ", ".join(parts)


def not_measured_line() -> str:
    """What the report is silent about."""
    return f"not measured: {', '.join(NOT_MEASURED)}"


def verdict(report: Holistic) -> str:
    """The first line of the page."""
    accuracy = report.mean([one.accuracy.value for one in report.scenarios])
    worst = report.mean([_value(one.worst) for one in report.scenarios])
    text = f"Accuracy {_number(accuracy)} on average over {len(report.scenarios)} tasks"
    if worst is not None:
        text += f", {_number(worst)} if every changed form must be answered rightly, too"
    if report.pooled is not None:
        text += f"; sure of itself to within {report.pooled.error:.3f} (ECE)"
    return text + "."


def write_holistic_page(report: Holistic, target: Path) -> None:
    """Self-contained HTML."""
    from jinja2 import Environment

    source = (files("polygraft.trainer.bench") / "holistic.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    record = report.as_json()
    page = template.render(
        title=title(report),
        verdict=verdict(report),
        headings=HEADINGS,
        lines=table_rows(report),
        bars=_svg(report, _draw_bars, (9.0, 0.55 * len(report.scenarios) + 1.4)),
        calibration=_svg(report, _draw_calibration, (5.0, 4.2)) if report.pooled else "",
        efficiency=efficiency_line(report),
        not_measured=not_measured_line(),
        record=record,
    )
    target.write_text(page, encoding="utf-8")


def _line(one: Scenario) -> list[str]:
    return [
        one.task,
        str(one.rows),
        shown(one.accuracy),
        "n/a" if one.calibration is None else f"{one.calibration.error:.3f}",
        "n/a" if one.worst is None else shown(one.worst),
        *(_number(_value(one.changed.get(name))) for name in ROBUSTNESS),
        _signed(one.fairness),
        str(len(one.fairness.rows)) if one.fairness else "0",
    ]


def _signed(score: Score | None) -> str:
    if score is None or score.value is None:
        return "n/a"
    if score.interval is None:
        return f"{score.value:+.1f}"
    return f"{score.value:+.1f} [{score.interval[0]:+.1f}, {score.interval[1]:+.1f}]"


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"


def _svg(report: Holistic, draw: Any, size: tuple[float, float]) -> str:
    from polygraft.trainer.drawing import new_figure, save_figure, svg_text

    figure = new_figure(width=size[0], height=size[1])
    draw(figure.subplots(), report)
    buffer = io.StringIO()
    save_figure(figure, buffer, draw.__name__)
    return svg_text(buffer)


def _draw_bars(axes: Any, report: Holistic) -> None:
    """Per task: accuracy, and what is left of it under every change."""
    tasks = [one.task for one in report.scenarios]
    places = range(len(tasks))
    plain = [one.accuracy.value or 0.0 for one in report.scenarios]
    errors = [
        (value - one.accuracy.interval[0], one.accuracy.interval[1] - value)
        if one.accuracy.interval
        else (0.0, 0.0)
        for one, value in zip(report.scenarios, plain, strict=True)
    ]
    worst = [_value(one.worst) or 0.0 for one in report.scenarios]
    axes.barh(
        [place - 0.2 for place in places],
        plain,
        0.38,
        xerr=list(zip(*errors, strict=True)),
        color="tab:blue",
        label="accuracy",
        ecolor="#33485c",
    )
    axes.barh(
        [place + 0.2 for place in places],
        worst,
        0.38,
        color="tab:orange",
        label="right in all four forms",
    )
    axes.set_yticks(list(places), tasks)
    axes.invert_yaxis()
    axes.set(xlabel="percent of the questions", xlim=(0, 101))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _draw_calibration(axes: Any, report: Holistic) -> None:
    """Accuracy against confidence, all answers pooled; the line is a model that knows itself."""
    assert report.pooled is not None
    bins = [one for one in report.pooled.bins if one.count]
    most = max(one.count for one in bins)
    axes.plot([0, 1], [0, 1], "--", color="#8a96a3", linewidth=1, label="as sure as right")
    axes.scatter(
        [one.confidence for one in bins],
        [one.accuracy for one in bins],
        s=[30 + 250 * one.count / most for one in bins],
        color="tab:blue",
        alpha=0.8,
        label="a tenth of the scale (area: answers)",
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.02, 1.04))
    axes.legend(loc="upper left", frameon=False)
