"""How the fused kernel cuts a linear layer into tiles: chosen by the bucket of a step alone.

Nothing of a step's content enters, so one bucket always computes with the same bits. The tables are
a heuristic, reckoned and compiled (docs/kernels.md), not yet measured on a GPU. No Triton, no
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

Target = Literal["sm_80", "sm_90", "gfx942"]
Variant = Literal["inline", "producers", "pair", "hybrid", "base"]
"""How a linear is computed. inline: kernel I, one launch. producers: kernel P, one launch. pair:
kernel P in two launches. hybrid: the vendor's product, and the low-rank sums beside it, added in
place. base: the vendor's product alone, for steps without columns."""


class Stage(IntEnum):
    """What one launch of `staged_kernel` computes."""

    FUSED = 0
    SHRINK = 1
    BASE_AND_EXPAND = 2
    EXPAND = 3


LARGEST_BUCKET = 8192
_SPLITS = (2, 4)
# Why: wider tiles have no registers left for the sum of the parts (make check-kernels).
_WIDEST_SPLIT: dict[Target, int] = {"sm_80": 64, "sm_90": 128, "gfx942": 128}
_PROGRAMS_WANTED = 128  # Why: about one per multiprocessor of the chips in the table


@dataclass(frozen=True, slots=True)
class TileConfig:
    """One form of the fused linear; the names are those of the kernels' constants.

    swap computes the transposed tile, which puts the many outputs, not the few rows, on the side
    of the tensor core's instruction that has 64 of them. Variants other than inline: the low-rank
    sums of a row tile are made by `producers` programs, each sum in `shrink_split` parts.
    """

    block_m: int
    block_n: int
    block_k: int
    block_c: int = 16
    split_k: int = 1
    swap: bool = False
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 8
    variant: Variant = "inline"
    shrink_split: int = 1
    shrink_block_k: int = 0  # 0: as block_k
    producers: int = 8

    def num_programs(self, rows: int, slices: tuple[int, ...]) -> int:
        """Programs that compute tiles of Y."""
        return self.split_k * self.num_tiles(rows, slices)

    def num_row_tiles(self, rows: int) -> int:
        """Tiles of rows: as many as the plan of a step has."""
        return -(-rows // self.block_m)

    def num_tiles(self, rows: int, slices: tuple[int, ...]) -> int:
        """Tiles of Y: a tile does not cross the border of two slices."""
        across = sum(-(-width // self.block_n) for width in slices)
        return self.num_row_tiles(rows) * across


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a choice may depend on: a range of row counts, named by its largest, and the site.

    inputs, outputs: widths of the slices of the sum and of the result; at most one has several.
    is_gradient: of the gradient of X, which reads W transposed.
    """

    rows: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_gradient: bool = False

    @classmethod
    def forward(cls, rows: int, inputs: int, slices: tuple[int, ...]) -> Bucket:
        """The bucket of a step of `rows` rows: powers of two up to LARGEST_BUCKET."""
        return cls(bucket_rows(rows), (inputs,), slices)

    @classmethod
    def gradient(cls, rows: int, inputs: int, slices: tuple[int, ...]) -> Bucket:
        """The same for the gradient of the step's X."""
        return cls(bucket_rows(rows), slices, (inputs,), is_gradient=True)


def bucket_rows(rows: int) -> int:
    """Rows of the bucket: the next power of two, at most LARGEST_BUCKET."""
    return min(1 << max(rows - 1, 0).bit_length(), LARGEST_BUCKET)


# By target: (largest bucket, tiles). A bucket takes the first line that it does not exceed.
_TABLES: dict[Target, tuple[tuple[int, TileConfig], ...]] = {
    # Why 64 columns for few rows: transposed, they are the 64 of the asynchronous instruction; with
    # 16 its products were serialized. Columns that no adapter has are not read.
    "sm_90": (
        (16, TileConfig(16, 64, 64, block_c=64, swap=True, num_stages=5)),
        (32, TileConfig(32, 64, 64, block_c=64, swap=True, num_stages=5)),
        (64, TileConfig(64, 64, 128, swap=True, num_stages=3)),
        (512, TileConfig(128, 128, 64, num_warps=8, num_stages=4)),
        (LARGEST_BUCKET, TileConfig(128, 256, 64, num_warps=8, num_stages=3)),
    ),
    "sm_80": (
        (16, TileConfig(16, 64, 128, swap=True, num_stages=4)),
        (32, TileConfig(32, 64, 64, swap=True, num_stages=4)),
        (64, TileConfig(64, 64, 32, swap=True, num_stages=5)),
        (256, TileConfig(128, 64, 64, num_warps=8, num_stages=4)),
        (LARGEST_BUCKET, TileConfig(128, 128, 64, num_warps=8, num_stages=4)),
    ),
    "gfx942": (
        (16, TileConfig(16, 64, 128, num_stages=2)),
        (64, TileConfig(64, 64, 64, num_stages=2)),
        (LARGEST_BUCKET, TileConfig(128, 128, 64, num_warps=8, num_stages=2)),
    ),
}

_GRADIENT_TILES: dict[Target, TileConfig] = {
    "sm_90": TileConfig(128, 128, 64, num_warps=8, num_stages=3),
    "sm_80": TileConfig(128, 64, 32, num_warps=8, num_stages=3),
    "gfx942": TileConfig(128, 64, 64, num_warps=8, num_stages=2),
}


def block_rows(rows: int, target: Target) -> int:
    """Rows of a tile in the bucket of a step of `rows` rows, the same for every layer."""
    rows = bucket_rows(rows)
    return next(entry.block_m for largest, entry in _TABLES[target] if rows <= largest)


def choice(bucket: Bucket, target: Target, block_m: int | None = None) -> TileConfig:
    """The reckoned tiles of a bucket for the inline variant; of `block_m` rows, if that is given.

    The sum is cut where that needs no remainder, and split among programs where the tiles alone are
    fewer than the chip has multiprocessors. Which variant is taken, `dispatch` says. Raises
    ValueError if no tiles have `block_m` rows.
    """
    config = _table_entry(bucket, target, block_m)
    config = replace(config, block_k=largest_divisor(config.block_k, bucket.inputs))
    if bucket.is_gradient or config.block_n > _WIDEST_SPLIT[target]:
        return config
    (inputs,) = bucket.inputs
    tiles = config.num_tiles(bucket.rows, bucket.outputs)
    for split in _SPLITS:
        if tiles * config.split_k < _PROGRAMS_WANTED and inputs % (split * config.block_k) == 0:
            config = replace(config, split_k=split)
    return config


def _table_entry(bucket: Bucket, target: Target, block_m: int | None) -> TileConfig:
    if bucket.is_gradient:
        return _GRADIENT_TILES[target]
    entries = [entry for rows, entry in _TABLES[target] if bucket.rows <= rows]
    if block_m is not None and entries[0].block_m != block_m:
        entries = [entry for _, entry in _TABLES[target] if entry.block_m == block_m]
        if not entries:
            raise ValueError(f"no tiles of {block_m} rows are known for {target}")
    wide = entries[0].block_n > _WIDEST_SPLIT[target]
    if wide and entries[0].num_tiles(bucket.rows, bucket.outputs) < _PROGRAMS_WANTED:
        return _TABLES[target][-2][1]  # tiles that leave registers for a split sum
    return entries[0]


def largest_divisor(block: int, widths: tuple[int, ...]) -> int:
    """The largest power of two from 16 to `block` that divides every width; `block` if none does:
    the kernel then masks."""
    fitting = (size for size in (128, 64, 32, 16) if size <= block)
    return next((size for size in fitting if not any(w % size for w in widths)), block)
