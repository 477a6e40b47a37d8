"""Draws scores, confusion and what a soft prompt reads like; as PNG into files, SVG into buffers.

Takes what report.json and soft_prompt.json hold, so the pictures of a run can be drawn anew.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polygraft.trainer.drawing import new_figure, save_figure

Target = Path | io.StringIO
SHOWN_METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "exact_match", "accuracy", "macro_f1")
"""What is drawn where it was measured; all other scores stand in the table."""
BASE, ADAPTER = "#9aa5b1", "#1f6feb"
OTHERS = ("#d9a441", "#8fb8f2", "#7a5bd0")
"""Of subjects between the first, which is the base, and the last, which is the adapter."""


def plot_scores(subjects: Sequence[Mapping[str, Any]], target: Target, title: str) -> bool:
    """A bar per subject and metric with its 95 % interval; False where there is none to draw."""
    metrics = [
        metric
        for metric in SHOWN_METRICS
        if subjects and all(_value(subject, metric) is not None for subject in subjects)
    ]
    if not metrics:
        return False
    figure = new_figure(width=8, height=3.2)
    axes = figure.subplots()
    width = 0.8 / len(subjects)
    for number, subject in enumerate(subjects):
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(metrics))]
        values = [_value(subject, metric) or 0.0 for metric in metrics]
        colour = _colour(number, len(subjects))
        axes.bar(places, values, 0.92 * width, color=colour, label=subject["subject"])
        for place, metric, value in zip(places, metrics, values, strict=True):
            low, high = subject["scores"][metric].get("ci95") or (value, value)
            reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(place, value, yerr=reach, color="#1c2733", linewidth=1, capsize=2)
            axes.text(place, high + 2, f"{value:.0f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set(ylabel="percent", ylim=(0, 110))
    axes.set_title(title, loc="left")
    _plain(axes)
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(ncols=len(subjects), frameon=False, fontsize=9, **above)
    save_figure(figure, target, title)
    return True


def plot_confusion(classification: Mapping[str, Any], target: Target, title: str) -> None:
    """Wanted labels down, said labels and "invalid" across; counts, shaded by their row."""
    labels, counts = classification["labels"], classification["confusion"]
    size = max(3.2, 0.55 * len(labels) + 1.6)
    figure = new_figure(width=size + 1.2, height=size)
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.55 else "#1c2733"
            axes.text(j, i, count or "", ha="center", va="center", color=colour, fontsize=9)
    columns = [*labels, "invalid"]
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="said", ylabel="wanted", title=title)
    save_figure(figure, target, title)


def plot_reading(reading: Mapping[str, Any], target: Target, title: str) -> None:
    """A bar per virtual token: cosine to its nearest token, with chance and the drift beside it."""
    tokens = reading["tokens"]
    figure = new_figure(width=8, height=1.2 + 0.24 * len(tokens))
    axes = figure.subplots()
    places = list(range(len(tokens)))
    for place, token in zip(places, tokens, strict=True):
        nearest = token["nearest"][0]
        colour = ADAPTER if token["says_something"] else BASE
        axes.barh(place, nearest["cosine"], 0.72, color=colour)
        words = "  ".join(_shown(neighbour["text"]) for neighbour in token["nearest"][:3])
        axes.text(nearest["cosine"] + 0.015, place, words, va="center", fontsize=7.5)
    chance = [token["chance"] for token in tokens]
    axes.plot(chance, places, "|", color="#b3261e", markersize=9, label="best by chance")
    kept = [(token["kept"], place) for place, token in zip(places, tokens, strict=True)]
    if all(value is not None for value, _ in kept):
        axes.plot(
            *zip(*kept, strict=True), "o", color="#1c2733", markersize=3, label="to its start"
        )
    axes.set_yticks(places, [str(token["index"]) for token in tokens], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="cosine", ylabel="virtual token", xlim=(min(0.0, *_all(kept)), 1.15))
    axes.set_title(title)
    _plain(axes)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    save_figure(figure, target, title)


def _colour(number: int, count: int) -> str:
    if number == 0:
        return BASE
    return ADAPTER if number == count - 1 else OTHERS[(number - 1) % len(OTHERS)]


def _all(kept: Sequence[tuple[float | None, int]]) -> list[float]:
    return [value for value, _ in kept if value is not None] or [0.0]


def _shown(text: str) -> str:
    """A token as one can see it: matplotlib takes $ for formulas and has no glyph for controls."""
    visible = text.strip().replace("$", "\\$")
    return visible if visible.isprintable() and visible else repr(text)


def _value(subject: Mapping[str, Any], metric: str) -> float | None:
    score = subject["scores"].get(metric)
    return None if score is None else score["value"]


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
