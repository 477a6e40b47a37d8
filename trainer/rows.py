"""Rows of JSONL, CSV and Parquet files as plain mappings, each with its line. Knows no meaning.

A broken row is yielded as the error that names it, so that one reading can tell all of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polygraft.trainer.errors import DataError

HUB_PREFIX = "hf:"
SUFFIXES = (".jsonl", ".csv", ".parquet")
Row = dict[str, Any]


def scan_rows(path: str | Path) -> Iterator[tuple[int, Row | DataError]]:
    """(line or row number from 1, the row or what is wrong with it), in order.

    `path` is a file or `hf:owner/name[@revision]:file` on the hub. JSONL and CSV are UTF-8; blank
    JSONL lines are skipped, but counted. Raises DataError where the file as a whole is unreadable.
    """
    if str(path).startswith(HUB_PREFIX):
        from polygraft.trainer.hub import fetch

        path = fetch(str(path))
    path = Path(path)
    if path.suffix == ".jsonl":
        yield from _scan_jsonl(path, _text_of(path))
    elif path.suffix == ".csv":
        yield from _scan_csv(path, _text_of(path))
    elif path.suffix == ".parquet":
        yield from _scan_parquet(path)
    else:
        _text_of(path)  # a missing file is told before its ending
        raise DataError(
            f"has the ending {path.suffix!r}; use {', '.join(SUFFIXES)}.", file=str(path)
        )


def read_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """`scan_rows`, raising the first error."""
    for line, row in scan_rows(path):
        if isinstance(row, DataError):
            raise row
        yield line, row


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}.", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start}).", file=str(path)) from None


def _scan_jsonl(path: Path, text: str) -> Iterator[tuple[int, Row | DataError]]:
    for line, record in enumerate(text.split("\n"), 1):
        if not record.strip():
            continue
        place = f"{path}:{line}"
        try:
            row = json.loads(record)
            json.dumps(row, ensure_ascii=False).encode()  # finds lone surrogates, "\\ud800"
        except (ValueError, RecursionError) as error:
            yield line, DataError(f"is not valid JSON: {error}.", file=place)
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            yield line, DataError("must be an object, e.g. {...}.", file=place)


def _scan_csv(path: Path, text: str) -> Iterator[tuple[int, Row | DataError]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None not in row and None not in row.values():
                yield reader.line_num, dict(row)
                continue
            count = len(reader.fieldnames or ())
            yield (
                reader.line_num,
                DataError(
                    f"has another number of fields than the header ({count}).",
                    file=f"{path}:{reader.line_num}",
                ),
            )
    except csv.Error as error:
        raise DataError(f"is not valid CSV: {error}.", file=f"{path}:{reader.line_num}") from None


def _scan_parquet(path: Path) -> Iterator[tuple[int, Row | DataError]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            "Parquet needs pyarrow.", file=str(path), hint="pip install 'polygraft[parquet]'"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot be read: {reason}.", file=str(path)) from None
    except pyarrow.ArrowException as error:
        raise DataError(f"is not valid Parquet: {error}.", file=str(path)) from None
