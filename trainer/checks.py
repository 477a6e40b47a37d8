"""Refuses data that would train a bad adapter quietly: empty, cut, too long or repeated rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from polygraft.trainer.encode import Encoded
from polygraft.trainer.errors import DataError

MAX_BAD_SHARE = 0.01
"""Share of rows that may be dropped for an empty completion before the run is refused."""
SHOWN = 5


@dataclass
class Checked:
    """The rows that passed, and what to tell the user about the others."""

    rows: list[Encoded]
    warnings: list[str] = field(default_factory=list)


def check_rows(
    split: str,
    rows: Sequence[Encoded],
    max_length: int,
    on_overflow: Literal["error", "drop"],
    *,
    repeats_are_meant: bool = False,
) -> Checked:
    """Drop a few bad rows with a warning, refuse many. Raises DataError naming the rows."""
    checked = Checked(list(rows))
    _drop_empty(split, checked)
    _drop_long(split, checked, max_length, on_overflow)
    if not checked.rows:
        raise DataError(f"no row of the {split} split is left.", item=f"data.{split}")
    if not repeats_are_meant:
        _count_repeats(split, checked)
    return checked


def _drop_empty(split: str, checked: Checked) -> None:
    empty = [row for row in checked.rows if not row.example.completion.strip()]
    if not empty:
        return
    message = f"{len(empty)} of {len(checked.rows)} {split} rows have an empty completion: "
    message += _places(empty)
    if len(empty) > MAX_BAD_SHARE * len(checked.rows):
        raise DataError(
            message,
            item=f"data.{split}",
            hint="Is data.completion the right field? Remove these rows if they are meant so.",
        )
    checked.warnings.append(f"dropped: {message}")
    checked.rows = [row for row in checked.rows if row not in empty]


def _drop_long(
    split: str, checked: Checked, max_length: int, on_overflow: Literal["error", "drop"]
) -> None:
    long = [row for row in checked.rows if len(row.input_ids) > max_length]
    if not long:
        return
    longest = max(len(row.input_ids) for row in long)
    message = (
        f"{len(long)} of {len(checked.rows)} {split} rows are longer than "
        f"{max_length} tokens (longest {longest}): {_places(long)}"
    )
    if on_overflow == "error":
        raise DataError(
            message,
            item="data.max_length",
            hint="Raise data.max_length, shorten the rows, or set data.on_overflow: drop.",
        )
    checked.warnings.append(f"dropped: {message}")
    checked.rows = [row for row in checked.rows if len(row.input_ids) <= max_length]


def _count_repeats(split: str, checked: Checked) -> None:
    repeats = len(checked.rows) - len({row.example.content for row in checked.rows})
    if repeats:
        checked.warnings.append(f"{repeats} {split} rows repeat another row word for word")


def _places(rows: Sequence[Encoded]) -> str:
    shown = ", ".join(row.example.source for row in rows[:SHOWN])
    more = len(rows) - SHOWN
    return f"{shown} and {more} more." if more > 0 else f"{shown}."
