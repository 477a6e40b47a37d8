"""Named figures with the bound that each is to keep: as a table, as JSON, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str = ""  # "ms", "tokens/s"; "" for counts and ratios
    at_most: float | None = None  # what the project set out to reach
    at_least: float | None = None

    @property
    def target(self) -> str:
        """The bound in words; empty if there is none."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def verdict(self) -> str:
        """Whether the bound is kept; empty if there is none."""
        if not self.target:
            return ""
        too_much = self.at_most is not None and self.value > self.at_most
        too_little = self.at_least is not None and self.value < self.at_least
        return "no" if too_much or too_little else "yes"

    @property
    def text(self) -> str:
        """Value and unit."""
        return f"{short(self.value)} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one benchmark measured, in which setting."""

    benchmark: str
    setting: str  # model, dtype, threads and load, for people
    figures: tuple[Figure, ...]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        figures = tuple(Figure(**figure) for figure in data.pop("figures"))
        return cls(figures=figures, **data)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"

    def report(self, console: Console, path: Path | None) -> None:
        """Print a table, and write the line if there is a path."""
        print_rows(console, f"{self.benchmark}: {self.setting}", COLUMNS, self._rows())
        if path is not None:
            path.write_text(self.to_json())

    def to_markdown(self) -> str:
        """A section with a table."""
        return markdown_section(self.benchmark, self.setting, COLUMNS, self._rows())

    def _rows(self) -> list[list[str]]:
        return [[f.name, f.text, f.target, f.verdict] for f in self.figures]


@dataclass(frozen=True, slots=True)
class Grid:
    """Named rows of numbers under headings."""

    benchmark: str
    setting: str
    headings: tuple[str, ...]  # the first one stands over the names
    rows: tuple[tuple[str, tuple[float, ...]], ...]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        rows = tuple((name, tuple(values)) for name, values in data.pop("rows"))
        return cls(headings=tuple(data.pop("headings")), rows=rows, **data)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"

    def report(self, console: Console, path: Path | None) -> None:
        """Print a table, and write the line if there is a path."""
        print_rows(console, f"{self.benchmark}: {self.setting}", self.headings, self._cells())
        if path is not None:
            path.write_text(self.to_json())

    def to_markdown(self) -> str:
        """A section with a table."""
        return markdown_section(self.benchmark, self.setting, self.headings, self._cells())

    def _cells(self) -> list[list[str]]:
        return [[name, *map(short, values)] for name, values in self.rows]


COLUMNS = ("figure", "measured", "target", "reached")


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def print_rows(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A table on the terminal."""
    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown_section(
    title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A heading, a paragraph and a table."""
    ruler = ["---"] * len(columns)
    table = ["| " + " | ".join(cells) + " |" for cells in (columns, ruler, *rows)]
    return "\n".join([f"## {title}", "", text, "", *table]) + "\n"
