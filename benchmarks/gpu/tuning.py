"""Which forms of the fused linear are worth timing, and which of those timed are taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.gpu.sites import Load
from benchmarks.gpu.timing import Times
from polygraft.kernels.fused.dispatch import COLUMN_BUCKETS, tiles_of
from polygraft.kernels.fused.measured_table import Entry
from polygraft.kernels.fused.tiles import Bucket, Target, TileConfig, Variant, block_rows

LARGEST_RANK = 256
FASTER = 0.97  # of the reckoned form's time, to be taken in its place
_COMPUTING: tuple[Variant, ...] = ("inline", "producers", "pair", "hybrid")


@dataclass(frozen=True, slots=True)
class Measured:
    """One form at one bucket. is_reckoned: the one that is taken without a table."""

    bucket: Bucket
    columns: int
    config: TileConfig
    times: Times
    is_reckoned: bool


def load_of(rows: int, block_m: int, columns: int) -> Load | None:
    """A step of `rows` rows whose row tiles have `columns` packed columns each, of as many adapters
    as there can be; None if no step has so many."""
    if columns == 0:
        return Load(rows, 0)
    in_tile = min(rows, block_m)
    adapters = min(in_tile, columns // 16)
    rank = columns // adapters
    if rank > LARGEST_RANK or rank * adapters != columns:
        return None
    tiles = -(-rows // block_m)
    return Load(rows, adapters * tiles, (rank,))


def candidates(bucket: Bucket, columns: int, target: Target) -> list[TileConfig]:
    """Every variant with its reckoned tiles, and with one number of them changed at a time."""
    found: dict[TileConfig, None] = {}
    variants: tuple[Variant, ...] = ("base", "inline") if columns == 0 else _COMPUTING
    for block_m in _row_tiles(bucket.rows, target):
        for variant in variants:
            start = tiles_of(variant, bucket, columns, target, block_m)
            found.update(dict.fromkeys((start, *_neighbours(start, bucket))))
    return list(found)


def _row_tiles(rows: int, target: Target) -> list[int]:
    reckoned = block_rows(rows, target)
    return [reckoned] + ([64] if reckoned == 128 and rows <= 256 else [])


def _neighbours(start: TileConfig, bucket: Bucket) -> Iterable[TileConfig]:
    if start.variant == "base":
        return
    for block_n in (32, 64, 128, 256):
        yield replace(start, block_n=block_n)
    for block_c in (16, 32, 64):
        yield replace(start, block_c=block_c)
    for num_stages in (2, 3, 4, 5):
        yield replace(start, num_stages=num_stages)
    if start.variant != "hybrid":
        for split in (1, 2, 4, 8):
            if bucket.inputs[0] % (split * start.block_k) == 0:
                yield replace(start, split_k=split)
    if start.variant != "inline":
        for producers in (4, 8, 16, 32, 64):
            yield replace(start, producers=producers)
        for parts in (1, 2, 4, 8):
            if bucket.inputs[0] % (parts * start.block_k) == 0:
                yield replace(start, shrink_split=parts, shrink_block_k=start.block_k)


def select(measured: Sequence[Measured]) -> list[Entry]:
    """The table: for each row bucket the height of tile whose best forms are fastest over all sites
    and columns, as a step has one plan; then the fastest form of each bucket.

    The reckoned form stays unless another one is 3 % faster and the middle eight tenths of their
    times do not meet: what is within the noise must not change the bits of a server.
    """
    entries: list[Entry] = []
    for rows in sorted({m.bucket.rows for m in measured}):
        here = [m for m in measured if m.bucket.rows == rows]
        block_m = _best_height(here)
        keys = dict.fromkeys((m.bucket, m.columns) for m in here)
        for bucket, columns in keys:
            key = bucket, columns, block_m
            forms = [m for m in here if (m.bucket, m.columns, m.config.block_m) == key]
            if forms:
                best = _best(forms)
                entries.append(Entry(bucket, columns, best.config, round(best.times.median, 2)))
    return entries


def _best_height(measured: Sequence[Measured]) -> int:
    keys = {(m.bucket, m.columns) for m in measured}
    ranking: dict[int, tuple[int, float]] = {}
    for block_m in {m.config.block_m for m in measured}:
        times: dict[tuple[Bucket, int], float] = {}
        for m in measured:
            if m.config.block_m == block_m:
                key = m.bucket, m.columns
                times[key] = min(times.get(key, float("inf")), m.times.median)
        ranking[block_m] = len(keys - times.keys()), sum(times.values())
    return min(ranking, key=lambda block_m: ranking[block_m])


def _best(measured: Sequence[Measured]) -> Measured:
    fastest = min(measured, key=lambda m: m.times.median)
    for other in measured:
        if other.is_reckoned and (
            fastest.times.median > FASTER * other.times.median
            or fastest.times.p90 >= other.times.p10
        ):
            return other
    return fastest


def column_buckets(rows: int, block_m: int) -> list[int]:
    """Those of COLUMN_BUCKETS that a step of `rows` rows can have."""
    return [columns for columns in COLUMN_BUCKETS if load_of(rows, block_m, columns)]
