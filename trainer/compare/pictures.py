"""A comparison and a sweep as pictures: PNG into files, SVG into buffers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.compare.result import OLD_LOST, ArmResult
from polygraft.trainer.compare.run import Outcome
from polygraft.trainer.drawing import new_figure, save_figure

if TYPE_CHECKING:
    from polygraft.trainer.sweep import Axis

Target = Path | io.StringIO


def plot_scores(outcome: Outcome, target: Target) -> None:
    """Bars of the task's own metric with intervals, old skills lost beside them."""
    shown = [result for result in outcome.results.values() if result.rows() is not None]
    figure = new_figure(width=10, height=1.2 + 0.32 * len(shown))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{result.name}  ({result.own_task})" for result in shown]
    places = list(range(len(shown)))[::-1]
    _bars(left, places, shown, "auto", "tab:blue")
    left.set(xlabel="score of the task's own metric (%)", xlim=(0, 105))
    left.set_yticks(places, names, fontsize=8)
    _bars(right, places, shown, OLD_LOST, "tab:red")
    right.set(xlabel="old skills lost (points)")
    figure.suptitle(f"{outcome.comparison.name}: 95 % intervals over seeds and rows", fontsize=10)
    save_figure(figure, target, outcome.comparison.name)


def plot_parameters(outcome: Outcome, target: Target) -> None:
    """Score against trained parameters, of the arms that share the first one's task."""
    scored = [result for result in outcome.results.values() if result.rows() is not None]
    task = scored[0].own_task if scored else None
    shown = [r for r in scored if r.own_task == task and (r.cost("trained_parameters") or 0) > 0]
    figure = new_figure(width=8, height=4.5)
    axes = figure.subplots()
    for result in shown:
        _point(axes, float(result.cost("trained_parameters") or 1), result)
        axes.annotate(
            result.name,
            (float(result.cost("trained_parameters") or 1), _mean(result)),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize=7,
        )
    axes.set(xscale="log", xlabel="trained parameters", ylabel="score (%)", title=str(task))
    save_figure(figure, target, outcome.comparison.name)


def plot_sweep(outcome: Outcome, swept: Sequence[Axis], target: Target) -> None:
    """Score against the value swept where it is one number, else against trained parameters."""
    from polygraft.trainer.sweep import x_of

    shown = [result for result in outcome.results.values() if result.rows() is not None]
    figure = new_figure(width=8, height=4.5)
    axes = figure.subplots()
    places = [x_of(result, swept) for result in shown]
    if any(place is None for place in places):  # words, such as the layers of a LoRA
        places = [float(number) for number in range(len(shown))]
        axes.set_xticks(range(len(shown)), [r.name for r in shown], rotation=30, ha="right")
        label = ", ".join(axis.key for axis in swept)
    else:
        label = swept[0].key if len(swept) == 1 else "trained parameters"
        if all(place and place > 0 for place in places):
            axes.set_xscale("log")
    for place, result in zip(places, shown, strict=True):
        _point(axes, float(place or 0), result)
        if len(swept) > 1:
            axes.annotate(result.name, (float(place or 0), _mean(result)), fontsize=7)
    if len(swept) == 1:
        axes.plot(places, [_mean(result) for result in shown], color="tab:blue", alpha=0.4)
    axes.set(xlabel=label, ylabel="score (%)", title=outcome.comparison.name)
    save_figure(figure, target, outcome.comparison.name)


def _point(axes: Any, x: float, result: ArmResult) -> None:
    rows = result.rows()
    assert rows is not None
    found = rows.estimate()
    error = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
    axes.errorbar([x], [found.value], yerr=error, fmt="o", color="tab:blue", capsize=3)
    per_seed = [sum(values) / len(values) for values in rows.values]
    axes.plot([x] * len(per_seed), per_seed, ".", color="tab:gray", markersize=4)


def _mean(result: ArmResult) -> float:
    rows = result.rows()
    assert rows is not None
    return rows.estimate().value


def _bars(
    axes: Any, places: Sequence[int], shown: Sequence[ArmResult], metric: str, colour: str
) -> None:
    for place, result in zip(places, shown, strict=True):
        rows = result.rows(metric)
        if rows is None:
            continue
        found = rows.estimate()
        error = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
        axes.barh(place, found.value, xerr=error, color=colour, height=0.7, capsize=2)
        axes.annotate(f"{found.value:.0f}", (found.high + 1, place - 0.2), fontsize=7)
    axes.grid(axis="x", alpha=0.3)
