"""Measured choices of kernels: one JSON file for a GPU and a Triton, in the folder `measured`.

    {"gpu": "NVIDIA H200", "triton": "3.7", "conditions": {"date": ..., "driver": ..., ...},
     "entries": [{"rows": 16, "inputs": [4096], "outputs": [4096, 1024, 1024],
                  "is_gradient": false, "columns": 64, "microseconds": 13.1,
                  "tiles": {"block_m": 16, "variant": "producers", ...}}, ...]}

rows and columns are buckets; tiles: the fields of TileConfig. benchmarks/kernels_tune.py writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from polygraft.kernels.fused.tiles import Bucket, TileConfig, Variant

FOLDER = Path(__file__).with_name("measured")


@dataclass(frozen=True, slots=True)
class Entry:
    """The fastest form of a bucket. microseconds: the median of one launch when it was measured."""

    bucket: Bucket
    columns: int
    tiles: TileConfig
    microseconds: float


@dataclass(frozen=True)
class MeasuredTable:
    """Entries of one GPU and one Triton (major.minor).

    Raises ValueError if two forward entries of one row bucket have tiles of different rows: a step
    has one plan for all layers.
    """

    gpu: str
    triton: str
    entries: Sequence[Entry]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self._rows is not None  # so that a bad table is refused when it is read

    @cached_property
    def _tiles(self) -> dict[tuple[Bucket, int], TileConfig]:
        return {(entry.bucket, entry.columns): entry.tiles for entry in self.entries}

    @cached_property
    def _rows(self) -> dict[int, int]:
        rows: dict[int, int] = {}
        for entry in self.entries:
            if entry.bucket.is_gradient:
                continue
            block_m = rows.setdefault(entry.bucket.rows, entry.tiles.block_m)
            if block_m != entry.tiles.block_m:
                raise ValueError(
                    f"steps of {entry.bucket.rows} rows have tiles of {block_m} rows in one layer "
                    f"and of {entry.tiles.block_m} in another; measure the table of {self.gpu} anew"
                )
        return rows

    def entry(self, bucket: Bucket, columns: int) -> TileConfig | None:
        """What was measured for this bucket and column bucket."""
        return self._tiles.get((bucket, columns))

    def block_rows(self, rows: int) -> int | None:
        """Rows of a tile in this row bucket."""
        return self._rows.get(rows)

    def to_json(self) -> str:
        """One entry a line, so that a new measurement is a readable difference."""
        lines = [json.dumps(_as_fields(entry)) for entry in self.entries]
        head = {"gpu": self.gpu, "triton": self.triton, "conditions": dict(self.conditions)}
        body = ",\n  ".join(lines)
        return json.dumps(head, indent=1)[:-2] + f',\n "entries": [\n  {body}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> MeasuredTable:
        """Raises ValueError for what is not such a table."""
        try:
            data = json.loads(text)
            entries = [_from_fields(entry) for entry in data["entries"]]
            return cls(data["gpu"], data["triton"], entries, data.get("conditions", {}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no table of measured kernels: {error!r}") from error


def file_name(gpu: str, triton: str) -> str:
    """nvidia-h200.triton-3.7.json"""
    return f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.triton-{triton}.json"


def find_table(gpu: str, triton: str, folder: Path = FOLDER) -> MeasuredTable | None:
    """The table of this GPU and Triton, or None. Raises ValueError if it is damaged."""
    path = folder / file_name(gpu, triton)
    if not path.exists():
        return None
    try:
        return MeasuredTable.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _as_fields(entry: Entry) -> dict[str, Any]:
    return {
        **asdict(entry.bucket),
        "columns": entry.columns,
        "microseconds": entry.microseconds,
        "tiles": asdict(entry.tiles),
    }


def _from_fields(fields: Mapping[str, Any]) -> Entry:
    bucket = Bucket(
        fields["rows"], tuple(fields["inputs"]), tuple(fields["outputs"]), fields["is_gradient"]
    )
    tiles = TileConfig(**fields["tiles"])
    if tiles.variant not in get_args(Variant):
        raise ValueError(f"no kernel is called {tiles.variant!r}: {', '.join(get_args(Variant))}")
    return Entry(bucket, fields["columns"], tiles, fields["microseconds"])
