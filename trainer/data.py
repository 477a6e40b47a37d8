"""Rows from JSONL and CSV files, each with its file and line. Knows no tokenizer and no split.

A row becomes an `Example`: the variables of the prompt template and the completion to learn.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygraft.trainer.errors import DataError


@dataclass(frozen=True)
class Example:
    """One prompt-completion pair before tokenising."""

    id: str
    group: str
    variables: Mapping[str, str]
    completion: str
    source: str
    """Where it was read, as `file:line`, for messages."""

    @property
    def content(self) -> str:
        """Canonical JSON of what the model sees; equal for exact duplicates."""
        pair = {"variables": dict(self.variables), "completion": self.completion}
        return json.dumps(pair, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def read_examples(
    path: Path, variables: Sequence[str], completion: str, group: str | None
) -> list[Example]:
    """Every row of a UTF-8 `.jsonl` or `.csv` file.

    `variables` and `completion` name the fields used; `group` the field of the group key (None:
    the row's content is its group). Raises DataError naming file, line and field.
    """
    examples = []
    for line, row in _read_rows(path):
        source = f"{path}:{line}"
        picked = {name: _text(row, name, source) for name in variables}
        target = _text(row, completion, source)
        key = _text(row, group, source) if group else ""
        identity = str(row.get("id", line))
        example = Example(identity, key, picked, target, source)
        if group is None:
            example = Example(identity, digest(example.content), picked, target, source)
        examples.append(example)
    if not examples:
        raise DataError("holds no rows.", file=str(path))
    return examples


def task_examples(name: str, split: str, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The rows of a built-in task's split; they carry `variables`, `completion`, `id`, `group`."""
    return [
        Example(
            id=str(row["id"]),
            group=str(row["group"]),
            variables={key: str(value) for key, value in row["variables"].items()},
            completion=str(row["completion"]),
            source=f"builtin:{name}.{split}:{number}",
        )
        for number, row in enumerate(rows, 1)
    ]


def digest(text: str) -> str:
    """sha256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def rows_sha256(examples: Iterable[Example]) -> str:
    """Identity of a split: sha256 over the canonical rows in order."""
    total = hashlib.sha256()
    for example in examples:
        total.update(example.content.encode() + b"\n")
    return total.hexdigest()


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row). Blank JSONL lines are skipped, but counted."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}.", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start}).", file=str(path)) from None
    if path.suffix == ".jsonl":
        yield from _read_jsonl(path, text)
    elif path.suffix == ".csv":
        yield from _read_csv(path, text)
    else:
        raise DataError(f"has the ending {path.suffix!r}; use .jsonl or .csv.", file=str(path))


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, record in enumerate(text.split("\n"), 1):
        if not record.strip():
            continue
        try:
            row = json.loads(record)
            json.dumps(row, ensure_ascii=False).encode()  # finds lone surrogates, "\\ud800"
        except (ValueError, RecursionError) as error:
            raise DataError(f"is not valid JSON: {error}.", file=f"{path}:{line}") from None
        if not isinstance(row, dict):
            raise DataError("must be an object, e.g. {...}.", file=f"{path}:{line}")
        yield line, row


def _read_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"has another number of fields than the header ({len(reader.fieldnames or ())})"
                    ".",
                    file=f"{path}:{reader.line_num}",
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise DataError(f"is not valid CSV: {error}.", file=f"{path}:{reader.line_num}") from None


def _text(row: Mapping[str, Any], field: str, source: str) -> str:
    if field not in row:
        raise DataError(
            "no such field.", file=source, item=field, hint=f"The row has: {', '.join(row)}."
        )
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise DataError(f"must be text or a number, found {kind}.", file=source, item=field)
    return str(value)
