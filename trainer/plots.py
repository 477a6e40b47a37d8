"""The loss curve of a run as a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from polygraft.trainer.drawing import new_figure, save_figure

_SMOOTHING = 0.9


def plot_loss(metrics: Path, target: Path | io.StringIO, title: str) -> None:
    """Draw training and validation loss, and the validation metric, from a `metrics.jsonl`.

    As PNG into a file, as SVG into a buffer.
    """
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record]
    checks = [record for record in records if "validation_loss" in record]
    figure = new_figure(width=8, height=4.5)
    axes = figure.subplots()
    x = [record["step"] for record in steps]
    losses = [record["loss"] for record in steps]
    axes.plot(x, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(x, _smoothed(losses), color="tab:blue", label="training loss")
    axes.plot(
        [record["step"] for record in checks],
        [record["validation_loss"] for record in checks],
        "o-",
        color="tab:orange",
        label="validation loss",
    )
    axes.set(xlabel="step", ylabel="loss per completion token", title=title, yscale="log")
    _plot_metric(axes, checks)
    axes.legend(loc="lower left")
    save_figure(figure, target, title)


def _plot_metric(axes: Any, checks: list[dict[str, Any]]) -> None:
    scored = [record for record in checks if record["metric"] != "loss"]
    if not scored:
        return
    name = str(scored[0]["metric"])
    right = axes.twinx()
    right.plot(
        [record["step"] for record in scored],
        [record["value"] for record in scored],
        "s--",
        color="tab:green",
        label=f"validation {name}",
    )
    right.set(ylabel=f"{name} (%)", ylim=(0, 102))
    right.legend(loc="lower right")


def _smoothed(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smoothed.append(total / weight)
    return smoothed
