"""What a row of a benchmark must hold for the installed task definition to read it.

Kinds: `text`; `filled`, text that is not empty; `texts`, a list of at least one; `texts 4`, of so
many; `list`, of texts, may be empty; `numbers`, a list; `label N`, a whole number from 0 to N - 1;
`index`, a whole number from 0; `word a|b`, one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polygraft.trainer.errors import DataError

Fields = Mapping[str, str]
"""Name to kind."""


def check_row(fields: Fields, row: Mapping[str, Any], place: str) -> None:
    """Raises DataError naming every field that is missing, or the first that is wrong."""
    missing = [name for name in fields if name not in row]
    if missing:
        has = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"lacks the {_fields(missing)}; it has {has}.",
            file=place,
            hint=f"A row needs {describe(fields)}.",
        )
    for name, kind in fields.items():
        if not _fits(kind, row[name]):
            shown = repr(row[name])
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise DataError(f"must be {_in_words(kind)}, not {shown}.", file=place, item=name)


def describe(fields: Fields) -> str:
    """The fields with their kinds, for a hint."""
    return ", ".join(f"{name} ({_in_words(kind)})" for name, kind in fields.items())


def _fields(names: list[str]) -> str:
    return f"field {names[0]}" if len(names) == 1 else f"fields {', '.join(names)}"


def _fits(kind: str, value: Any) -> bool:
    name, _, bound = kind.partition(" ")
    if name in ("text", "filled"):
        return isinstance(value, str) and bool(value or name == "text")
    if name in ("texts", "list"):
        whole = isinstance(value, list) and all(isinstance(text, str) for text in value)
        return whole and (len(value) == int(bound) if bound else bool(value or name == "list"))
    if name == "numbers":
        return isinstance(value, list) and all(_is_number(number) for number in value)
    if name == "word":
        return value in bound.split("|")
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return whole and (name != "label" or value < int(bound))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_words(kind: str) -> str:
    name, _, bound = kind.partition(" ")
    return {
        "text": "text",
        "filled": "text that is not empty",
        "list": "a list of texts",
        "texts": f"a list of {bound} texts" if bound else "a list of texts, not empty",
        "numbers": "a list of numbers",
        "word": " or ".join(bound.split("|")),
        "index": "a whole number from 0",
        "label": f"a whole number from 0 to {int(bound) - 1}" if name == "label" else "",
    }[name]
