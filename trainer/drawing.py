"""Opens and saves pictures: PNG into files, SVG into buffers, the same bytes for the same data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def new_figure(*, width: float, height: float) -> Any:
    """An empty figure that needs no display; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, target: Path | io.StringIO, salt: str) -> None:
    """PNG into a file, SVG into a buffer."""
    from matplotlib import rc_context

    kind = "svg" if isinstance(target, io.StringIO) else "png"
    # Without a date, and with a salt of ours, the same picture gives the same bytes.
    # Text stays text: smaller, sharper, and in the fonts of the page.
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(target, dpi=120, format=kind, metadata=metadata)


def svg_text(buffer: io.StringIO) -> str:
    """What stands in a page: the element alone."""
    text = buffer.getvalue()
    return text[text.index("<svg") :]
