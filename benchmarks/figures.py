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
        digits = f"{self.value:.3g}" if abs(self.value) < 100 else f"{self.value:.0f}"
        return f"{digits} {self.unit}".strip()


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
        table = Table(title=f"{self.benchmark}: {self.setting}", title_justify="left")
        for heading in COLUMNS:
            table.add_column(heading)
        for row in self._rows():
            table.add_row(*row)
        console.print(table)
        if path is not None:
            path.write_text(self.to_json())

    def to_markdown(self) -> str:
        """A section with a table."""
        lines = [
            f"## {self.benchmark}",
            "",
            self.setting,
            "",
            *markdown_table(COLUMNS, self._rows()),
        ]
        return "\n".join(lines) + "\n"

    def _rows(self) -> list[list[str]]:
        return [[f.name, f.text, f.target, f.verdict] for f in self.figures]


COLUMNS = ("figure", "measured", "target", "reached")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    ruler = ["---"] * len(columns)
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ruler, *rows)]
