"""One file of raw rows to three, by the hash of a group: what a recipe's `split` does, on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from polygraft.trainer.config import Split
from polygraft.trainer.digests import digest
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.forms import text_of
from polygraft.trainer.rows import Row, read_rows
from polygraft.trainer.splits import refuse_empty, split_of


def split_rows(file: str, out: Path, split: Split) -> tuple[dict[str, int], int]:
    """Write train, validation and test as JSONL into `out`; their row counts, and rows dropped.

    A train row that stands in a held-out file, whatever its group and id, is dropped. Raises
    DataError for unusable rows, RecipeError where a file is there already; nothing is written then.
    """
    places = {name: out / f"{name}.jsonl" for name in ("train", "validation", "test")}
    for path in places.values():
        if path.exists():
            raise RecipeError("is there already.", file=str(path), hint="Choose another --out.")
    lines: dict[str, list[tuple[str, str]]] = {name: [] for name in places}
    for number, row in read_rows(file):
        content = _content(row, split.by, f"{file}:{number}")
        group = text_of(row, split.by, f"{file}:{number}") if split.by else digest(content)
        text = json.dumps(row, ensure_ascii=False) + "\n"
        lines[split_of(group, split)].append((content, text))
    held_out = {content for name in ("validation", "test") for content, _ in lines[name]}
    kept = [pair for pair in lines["train"] if pair[0] not in held_out]
    dropped = len(lines["train"]) - len(kept)
    lines["train"] = kept
    refuse_empty(lines)
    out.mkdir(parents=True, exist_ok=True)
    for name, path in places.items():
        hidden = path.with_name(f".{path.name}.part")
        hidden.write_text("".join(text for _, text in lines[name]), encoding="utf-8")
        os.replace(hidden, path)
    return {name: len(rows) for name, rows in lines.items()}, dropped


def _content(row: Row, by: str | None, place: str) -> str:
    """What makes a row equal to another: everything but its id and its group."""
    content = {key: value for key, value in row.items() if key not in ("id", by)}
    try:
        return json.dumps(content, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"cannot be written as JSON: {error}.", file=place) from None
