"""From chunks to the tables of a step on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from torch import Tensor

from polygraft.kernels.segments import LoraSegment, SequenceRows
from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.batch import Chunk, ForwardBatch, LoraUpdate
from polygraft.server.engine.batch_builder import (
    BatchBuilder,
    cells_of,
    positions_of,
    sampled_rows,
    token_ids_of,
)
from polygraft.server.engine.changed_rows import AffineUpdate, ChangedRows
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.device.sampling import SamplingTable
from polygraft.server.engine.device.shapes import (
    GRAPH_CHUNK,
    WIDE,
    LinearTiles,
    StepSizes,
    column_class,
)
from polygraft.server.engine.device.site import DeviceSite
from polygraft.server.engine.device.tables import StepTables
from polygraft.server.engine.lora_tables import (
    BASE_ONLY,
    Key,
    Span,
    key_of,
    parts_of,
)
from polygraft.server.engine.messages import AdapterShare


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch(ForwardBatch):
    """A step whose tensors are views of the tables on the device.

    `lora` has the updates of rows in `changed` only; the others' stand in the tables. bucket: rows
    that a replayed step is padded to; None: it is launched as it is.
    """

    num_tokens: int
    num_tiles: int  # of attention
    bucket: int | None
    columns: int  # one of COLUMN_CLASSES, or WIDE
    are_all_sampled: bool  # the rows of logits are those of the tokens
    sampling: SamplingTable


class DeviceBatchBuilder(BatchBuilder):
    """Builds `DeviceBatch` records and uploads what they stand for. Engine thread only."""

    def __init__(
        self,
        bank: AdapterBank,
        tables: StepTables,
        sizes: StepSizes,
        tiles: LinearTiles,
        sites: Sequence[DeviceSite],
        *,
        vocab_size: int,
        path: DevicePath,
    ) -> None:
        # Rows that change more than low-rank updates do take torch's products, as on a CPU.
        super().__init__(bank, path.device, native_group=None)
        self._path = path
        self._vocab_size = vocab_size
        self._tables = tables
        self._sizes = sizes
        self._tiles = tiles
        self._sites = list(sites)

    def build(self, chunks: Sequence[Chunk]) -> DeviceBatch:
        """See BatchBuilder. The copies to the device are under way when it returns."""
        own = [c for c in chunks if not self._is_changed(c)]
        changed_chunks = [c for c in chunks if self._is_changed(c)]
        keys = {c.sequence.id: key_of(self._bank, c.sequence.request.adapters) for c in own}
        general = self._lora.place(
            {c.sequence.id: c.sequence.request.adapters for c in changed_chunks}
        )
        ordered = [
            *sorted(own, key=lambda c: (keys[c.sequence.id], c.num_tokens > 1)),
            *sorted(changed_chunks, key=lambda c: (general[c.sequence.id], c.num_tokens > 1)),
        ]
        starts = np.cumsum([0, *(c.num_tokens for c in ordered)]).tolist()
        samples, logit_rows = sampled_rows(ordered, starts)
        changed = self._changed_rows(ordered, starts, samples)
        num_tokens = starts[-1]
        bucket = self._bucket(ordered, num_tokens)
        segments = [
            LoraSegment(parts_of(span.key), span.start, span.end)
            for span in _spans([keys[c.sequence.id] for c in ordered[: len(own)]], starts)
        ]
        columns = self._fill(ordered, starts, logit_rows, segments, bucket)
        sampling = SamplingTable.of(samples, self._vocab_size, self.device)
        self._tables.upload()
        tables = self._tables
        return DeviceBatch(
            token_ids=tables.token_ids[: bucket or num_tokens],
            positions=tables.positions[: bucket or num_tokens],
            slot_mapping=tables.cells[: bucket or num_tokens],
            virtual=self._virtual_rows(ordered, starts),
            attention=tables.paged(is_decode=bucket is not None),
            lora=self._general_updates(changed, changed_chunks, general, ordered, starts),
            logit_rows=tables.logit_rows[: len(logit_rows)],
            samples=samples,
            changed=changed,
            num_tokens=num_tokens,
            num_tiles=tables.paged(is_decode=bucket is not None).num_tiles,
            bucket=bucket,
            columns=columns,
            are_all_sampled=logit_rows == list(range(num_tokens)),
            sampling=sampling,
        )

    def fill_padding(self, bucket: int) -> None:
        """Tables of a step in which every row is padding, to capture it."""
        empty = np.empty(0, dtype=np.int64)
        self._tables.fill(empty, empty, empty, [], [], padded_to=bucket)
        self._tables.fill_columns([], self._tiles.block_rows(bucket))
        self._tables.upload()

    def padding(self, rows: int) -> DeviceBatch:
        """A step of so many rows of padding, that is launched."""
        tables = self._tables
        tables.fill_unowned(rows)
        tables.fill_columns([], self._tiles.block_rows(rows))
        tables.upload()
        plan = tables.paged(is_decode=False)
        return DeviceBatch(
            token_ids=tables.token_ids[:rows],
            positions=tables.positions[:rows],
            slot_mapping=tables.cells[:rows],
            virtual=[],
            attention=plan,
            lora=[],
            logit_rows=tables.logit_rows[:1],
            samples=[],
            num_tokens=rows,
            num_tiles=plan.num_tiles,
            bucket=None,
            columns=0,
            are_all_sampled=False,
            sampling=SamplingTable.of([], self._vocab_size, self.device),
        )

    def updates_for(self, shares: tuple[AdapterShare, ...], num_rows: int) -> list[LoraUpdate]:
        """See BatchBuilder. Through the tables and kernels that serve, unless a version changes
        more than low-rank updates do."""
        if any(self._bank.changes(share.digest) is not None for share in shares):
            [key] = self._lora.place({"": shares}).values()
            spans = [] if key == BASE_ONLY else [Span(key, 0, num_rows)]
            return self._lora.updates(spans)
        key = key_of(self._bank, shares)
        segments = [] if key == BASE_ONLY else [LoraSegment(parts_of(key), 0, num_rows)]
        return [_TableUpdate(self, segments, num_rows)]

    def update(self, site: int, segments: Sequence[LoraSegment], x: Tensor) -> Tensor:
        """The updates of one site by the kernel that serves. x: [rows, in] -> [rows, out]."""
        config = self._tiles.of(len(x), WIDE)[site]  # whose product needs no weight in memory
        self._tables.fill_columns(segments, config.block_m)
        self._tables.upload()
        with self._path.current():
            return self._sites[site].update(x, config)

    def _is_changed(self, chunk: Chunk) -> bool:
        if not self._bank.has_changes:
            return False
        return any(self._bank.changes(digest) is not None for digest in chunk.sequence.digests)

    def _bucket(self, ordered: Sequence[Chunk], num_tokens: int) -> int | None:
        is_small = all(c.num_tokens <= GRAPH_CHUNK for c in ordered)
        if not is_small or any(self._is_changed(c) for c in ordered):
            return None
        return self._sizes.bucket(num_tokens)

    def _fill(
        self,
        ordered: Sequence[Chunk],
        starts: Sequence[int],
        logit_rows: Sequence[int],
        segments: Sequence[LoraSegment],
        bucket: int | None,
    ) -> int:
        """Returns the class of the step's rank columns."""
        sequences = []
        for chunk, start in zip(ordered, starts, strict=False):
            length = chunk.sequence.num_computed + chunk.num_tokens
            blocks = chunk.sequence.block_table
            sequences.append(SequenceRows(start, chunk.num_tokens, length, blocks))
        self._tables.fill(
            np.concatenate([token_ids_of(c) for c in ordered]),
            np.concatenate([positions_of(c) for c in ordered]),
            np.concatenate([cells_of(c) for c in ordered]),
            logit_rows,
            sequences,
            padded_to=bucket,
        )
        if not segments:
            return 0
        block_rows = self._tiles.block_rows(bucket or starts[-1])
        widest = max(sum(count for _, count, _ in segment.parts) for segment in segments)
        return column_class(self._tables.fill_columns(segments, block_rows), widest)

    def _general_updates(
        self,
        changed: list[ChangedRows],
        changed_chunks: Sequence[Chunk],
        general: dict[str, Key],
        ordered: Sequence[Chunk],
        starts: Sequence[int],
    ) -> list[LoraUpdate]:
        if not changed:
            return []
        first = len(ordered) - len(changed_chunks)
        spans = _spans([general[c.sequence.id] for c in ordered[first:]], starts[first:])
        return [AffineUpdate(changed), *self._lora.updates(spans)]


class _TableUpdate:
    """One composition for so many rows, added to whatever is there."""

    def __init__(
        self, builder: DeviceBatchBuilder, segments: Sequence[LoraSegment], num_rows: int
    ) -> None:
        self._builder = builder
        self._segments = segments
        self._num_rows = num_rows

    def add_(self, site: int, x: Tensor, y: Tensor) -> None:
        """See LoraUpdate."""
        if self._segments:
            y += self._builder.update(site, self._segments, x)


def _spans(keys: Sequence[Key], starts: Sequence[int]) -> list[Span]:
    """Adjacent chunks of one key, without those of the base only."""
    spans = []
    for key, group in groupby(range(len(keys)), key=lambda index: keys[index]):
        chunks = list(group)
        if key != BASE_ONLY:
            spans.append(Span(key, starts[chunks[0]], starts[chunks[-1] + 1]))
    return spans
