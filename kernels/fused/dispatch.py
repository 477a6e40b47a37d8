"""Which variant and tiles compute a linear: a function of the bucket alone, never of content.

    bucket      rows of the step, rounded up to a power of two; the layer's widths; forward or
                gradient; the columns of the step's widest row tile, rounded up to COLUMN_BUCKETS

What decides, in this order: a variant that was asked for (`override`, or $POLYGRAFT_KERNEL); the
table measured on this GPU with this Triton (measured/*.json, made by benchmarks/kernels_tune.py);
the reckoning below, from the cost model of docs/kernels.md. Nothing is measured while serving, so a
server computes one bucket with the same bits from start to end. No Triton.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import lru_cache
from typing import get_args

import torch

from polygraft.kernels.fused import tiles
from polygraft.kernels.fused.measured_table import MeasuredTable, find_table
from polygraft.kernels.fused.tiles import Bucket, Target, TileConfig, Variant

logger = logging.getLogger(__name__)

COLUMN_BUCKETS = (0, 16, 64, 256, 1024)
OVERRIDE_VARIABLE = "POLYGRAFT_KERNEL"

_MOST_INLINE = 64  # columns; each program computes them anew, so more of them cost the most
_MOST_DECODE = 256  # rows, up to which reading W bounds a layer and one launch pays
_MOST_FEW = 64  # rows, up to which a step is one row tile, hence few producers' shares


def column_bucket(columns: int) -> int:
    """The smallest of COLUMN_BUCKETS that holds `columns`; the largest for more."""
    return next((bucket for bucket in COLUMN_BUCKETS if columns <= bucket), COLUMN_BUCKETS[-1])


class Dispatcher:
    """Chooses for one GPU. Cheap: a bucket is decided once and then looked up.

    `ColumnPlan`s of a step must be of `block_rows(rows)` rows a tile; `choice` then gives the
    `config` of `launch.lora_linear` for each site.
    """

    def __init__(
        self, target: Target, table: MeasuredTable | None = None, override: Variant | None = None
    ) -> None:
        """override: compute everything with this variant. Raises ValueError if it cannot."""
        if override == "base" or override not in (None, *get_args(Variant)):
            raise ValueError(
                f"the kernel variant {override!r} cannot be asked for: it must be one of "
                f"{', '.join(name for name in get_args(Variant) if name != 'base')}"
            )
        self._target = target
        self._table = table
        self._override = override
        self._chosen: dict[tuple[Bucket, int], TileConfig] = {}

    @classmethod
    def for_device(cls, device: torch.device, override: Variant | None = None) -> Dispatcher:
        """With this GPU's measured table, if there is one; says so in the log.

        override: without it, what $POLYGRAFT_KERNEL names. Raises ValueError for a GPU without
        tiles and for a variant that does not exist.
        """
        named = override or os.environ.get(OVERRIDE_VARIABLE) or None
        table = find_table(torch.cuda.get_device_name(device), _triton_version())
        dispatcher = cls(target_of(device), table, named)  # type: ignore[arg-type]
        logger.info("fused LoRA kernels: %s", dispatcher.source)
        return dispatcher

    @property
    def source(self) -> str:
        """What decides, in words, for a log or a status page."""
        if self._override:
            return f"{self._override}, as asked for"
        if self._table:
            return f"measured on {self._table.gpu} with Triton {self._table.triton}"
        return f"reckoned for {self._target}, not measured on this GPU"

    def block_rows(self, rows: int) -> int:
        """Rows of a tile in the plan of a step of `rows` rows."""
        measured = self._table and self._table.block_rows(tiles.bucket_rows(rows))
        return measured or tiles.block_rows(rows, self._target)

    def choice(self, bucket: Bucket, columns: int) -> TileConfig:
        """Variant and tiles. columns: those of the step's widest row tile (`widest_tile`), or any
        bound of them that is known without looking at the device."""
        key = bucket, column_bucket(columns)
        if key not in self._chosen:
            self._chosen[key] = self._decide(*key)
        return self._chosen[key]

    def chosen(self) -> dict[tuple[Bucket, int], TileConfig]:
        """Every choice so far, by bucket and column bucket: what a metric shows."""
        return dict(self._chosen)

    def _decide(self, bucket: Bucket, columns: int) -> TileConfig:
        if self._table and not self._override:
            measured = self._table.entry(bucket, columns)
            if measured:
                return measured
        block_m = None if bucket.is_gradient else self.block_rows(bucket.rows)
        variant = self._override or reckoned_variant(bucket, columns, self._target)
        return tiles_of(variant, bucket, columns, self._target, block_m)


def reckoned_variant(bucket: Bucket, columns: int, target: Target) -> Variant:
    """From the cost model, not from a clock. columns: one of COLUMN_BUCKETS."""
    if columns == 0:
        return "base"
    if bucket.rows > _MOST_DECODE:
        return "hybrid"
    if columns <= _MOST_INLINE:
        return "inline"
    if bucket.is_gradient:
        return "hybrid"
    # Why: programs that wait for others of their launch are only promised to end on NVIDIA's chips.
    return "pair" if target == "gfx942" else "producers"


def tiles_of(
    variant: Variant, bucket: Bucket, columns: int, target: Target, block_m: int | None = None
) -> TileConfig:
    """The reckoned tiles of a variant. columns: one of COLUMN_BUCKETS."""
    config = replace(tiles.choice(bucket, target, block_m), variant=variant)
    if variant in ("inline", "base"):
        return config
    few = bucket.rows <= _MOST_FEW
    # Why parts: of few rows there are few sums, and more producers than they would occupy.
    parts = 4 if few else 2 if bucket.rows <= _MOST_DECODE else 1
    parts = 1 if bucket.is_gradient else parts
    return replace(
        config,
        split_k=1 if variant == "hybrid" else config.split_k,
        producers=32 if few else 8,
        shrink_split=parts,
        shrink_block_k=tiles.largest_divisor(config.block_k, _parts(bucket.inputs, parts)),
    )


def _parts(inputs: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Widths of which a block must be a divisor; as they are if they cannot be cut evenly."""
    return inputs if any(width % parts for width in inputs) else tuple(w // parts for w in inputs)


def describe(config: TileConfig) -> str:
    """A form in one word or a few, for a label: variant, tiles, columns, splits."""
    name = f"{config.variant} {config.block_m}x{config.block_n}x{config.block_k}"
    if config.variant == "base":
        return "base"
    return name + (f" split {config.split_k}" if config.split_k > 1 else "")


def target_of(device: torch.device) -> Target:
    """The row of the tile tables for a GPU. Raises ValueError for one that has none."""
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
        if name == "gfx942":
            return "gfx942"
    else:
        capability = torch.cuda.get_device_capability(device)
        name = "sm_{}{}".format(*capability)
        if capability == (8, 0):
            return "sm_80"
        if capability == (9, 0):
            return "sm_90"
    raise ValueError(f"the fused kernel has no tiles for {name}: only for sm_80, sm_90 and gfx942")


@lru_cache(maxsize=16)
def dispatcher_of(device: torch.device) -> Dispatcher:
    """The one that all operators on this GPU share."""
    return Dispatcher.for_device(device)


def _triton_version() -> str:
    """Installed Triton's major.minor, without importing it."""
    from importlib.metadata import version

    return ".".join(version("triton").split(".")[:2])
