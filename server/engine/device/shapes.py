"""How steps of every size are cut: buckets of rows, tiles of the linears and of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polygraft.kernels.fused.dispatch import Dispatcher
from polygraft.kernels.fused.tiles import Bucket, Target, TileConfig, bucket_rows, choice
from polygraft.kernels.paged.tiles import LayerShape, PagedConfig, decode_config, prefill_config
from polygraft.kernels.rank_pool import SiteShape
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.probe import ProbedModel

LARGEST_GRAPH = 256  # rows
GRAPH_CHUNK = 16
"""Rows of one sequence in a step that is replayed: each reads the context anew, so more of them are
computed in tiles, by launches."""
COLUMN_CLASSES = (0, 64, 1024)
"""Rank columns of a step's widest row tile, as far as they decide about kernels: none, few that are
computed in every program anew, and more."""
SEGMENT_COLUMNS = 1024  # of one composition, that scratch has room for
WIDE = -1  # the class of steps with a wider one: computed without scratch, if more slowly


def column_class(widest_tile: int, widest_segment: int) -> int:
    """Of a step that has these rank columns in its widest row tile, and in a segment."""
    if widest_segment > SEGMENT_COLUMNS:
        return WIDE
    return next((most for most in COLUMN_CLASSES if widest_tile <= most), COLUMN_CLASSES[-1])


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The largest step, fixed at start."""

    rows: int
    graph_rows: tuple[int, ...]  # ascending buckets; a step is padded to the least that holds it
    block_size: int
    blocks: int  # entries of the block tables of all running sequences
    columns: int  # rank columns

    @classmethod
    def of(cls, config: EngineConfig, *, context: int, pool_rows: int) -> StepSizes:
        """From the settings and what a sequence and the pool can hold."""
        most = min(config.max_running, LARGEST_GRAPH)
        buckets = tuple(1 << e for e in range((most - 1).bit_length() + 1))
        blocks = config.max_running * -(-context // config.block_size)
        return cls(
            rows=max(config.step_tokens, buckets[-1]),
            graph_rows=buckets,
            block_size=config.block_size,
            blocks=blocks,
            # Why not less: a composition that is wider than a step may be runs alone.
            columns=max(config.max_step_columns, pool_rows),
        )

    def bucket(self, rows: int) -> int | None:
        """The least bucket of so many rows; None: more than any."""
        return next((bucket for bucket in self.graph_rows if rows <= bucket), None)


class LinearTiles:
    """Variant and tiles of every site, by rows and columns; those of a bucket never change."""

    def __init__(self, sites: Sequence[SiteShape], dispatcher: Dispatcher, target: Target) -> None:
        self._sites = list(sites)
        self._dispatcher = dispatcher
        self._target: Target = target
        self._found: dict[tuple[int, int], tuple[TileConfig, ...]] = {}

    def block_rows(self, rows: int) -> int:
        """Rows of a tile in the plan of a step of so many rows."""
        return self._dispatcher.block_rows(rows)

    def of(self, rows: int, columns: int) -> tuple[TileConfig, ...]:
        """By index of the site. columns: one of COLUMN_CLASSES, or WIDE."""
        key = bucket_rows(rows), columns
        if key not in self._found:
            self._found[key] = tuple(
                self._decide(self._bucket(rows, s), columns) for s in self._sites
            )
        return self._found[key]

    def launches(self, sizes: StepSizes) -> list[tuple[Bucket, TileConfig]]:
        """All that steps of these sizes need."""
        rows = {*(1 << e for e in range(sizes.rows.bit_length())), sizes.rows, *sizes.graph_rows}
        return [
            (self._bucket(count, site), config)
            for count in sorted(rows)
            for columns in (*COLUMN_CLASSES[1:], WIDE)
            for site, config in zip(self._sites, self.of(count, columns), strict=True)
        ]

    def _decide(self, bucket: Bucket, columns: int) -> TileConfig:
        if columns == WIDE:
            return choice(bucket, self._target, self._dispatcher.block_rows(bucket.rows))
        return self._dispatcher.choice(bucket, columns)

    def _bucket(self, rows: int, site: SiteShape) -> Bucket:
        return Bucket.forward(rows, site.in_features, site.slices)


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """Tiles of every layer for steps of single rows, and for those with chunks."""

    layers: tuple[LayerShape, ...]
    decode: tuple[PagedConfig, ...]
    prefill: tuple[PagedConfig, ...]

    @classmethod
    def of(cls, probed: ProbedModel, context: int) -> AttentionTiles:
        """context: of one sequence."""
        layers = tuple(
            LayerShape(
                facts.kv_heads,
                facts.heads // facts.kv_heads,
                facts.head_dim,
                facts.value_dim,
                facts.window,
                facts.softcap,
                facts.has_sinks,
            )
            for facts in probed.layers
        )
        widths = [(layer.group, max(layer.dim, layer.value_dim)) for layer in layers]
        return cls(
            layers,
            tuple(decode_config(group, dim, context) for group, dim in widths),
            tuple(prefill_config(group, dim) for group, dim in widths),
        )

    def rows(self, *, is_decode: bool) -> int:
        """Rows of a tile that every layer can compute."""
        configs = self.decode if is_decode else self.prefill
        return min(c.rows(s.group) for c, s in zip(configs, self.layers, strict=True))
