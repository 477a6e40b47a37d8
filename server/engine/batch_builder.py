"""From chunks to tensors: the flat row of tokens of one step, ordered by adapter.

Rows of one adapter are adjacent and decodes stand before chunks inside a segment; rows without
LoRA come last and cost nothing extra.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polygraft.kernels.attention import AttentionPlan, Context, DecodeRows, PrefillRows
from polygraft.kernels.grouped import GroupedSegments, Part, Segment, rank_class
from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.batch import Chunk, ForwardBatch, SampleRows, VirtualRows
from polygraft.server.engine.messages import AdapterShare
from polygraft.server.engine.sequence import Sequence as EngineSequence

Composition = tuple[AdapterShare, ...]  # the LoRAs of a request: digests, as rows are used again
Key = tuple[int, int]  # (rank class, slot); base-only rows sort last
_BASE_ONLY: Key = (1 << 30, 0)


class BatchBuilder:
    """Builds `ForwardBatch` records. Engine thread only."""

    def __init__(self, bank: AdapterBank, device: torch.device) -> None:
        self._bank = bank
        self._device = device

    def build(self, chunks: Sequence[Chunk]) -> ForwardBatch:
        """The tensors of one step, for chunks whose blocks are allocated."""
        keys = self._place(chunks)
        ordered = sorted(chunks, key=lambda c: (keys[c.sequence.id], c.num_tokens > 1))
        starts = np.cumsum([0, *(c.num_tokens for c in ordered)]).tolist()
        samples, logit_rows = _sampled_rows(ordered, starts)
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate([_token_ids(c) for c in ordered])),
            positions=self._tensor(np.concatenate([_positions(c) for c in ordered])),
            slot_mapping=self._tensor(np.concatenate([_cells(c) for c in ordered])),
            virtual=self._virtual_rows(ordered, starts),
            attention=self._attention(ordered, starts),
            lora=self._segments(ordered, starts, keys),
            logit_rows=self._tensor(np.asarray(logit_rows, dtype=np.int64)),
            samples=samples,
        )

    def _tensor(self, values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _place(self, chunks: Sequence[Chunk]) -> dict[str, Key]:
        """Stack slot of every sequence; brings the adapters of this step into the stacks."""
        wanted: dict[int, dict[Composition, tuple[Part, ...]]] = defaultdict(dict)
        owner: dict[str, tuple[int, Composition]] = {}
        for chunk in chunks:
            part_of = self._bank.parts(chunk.sequence.request.adapters)
            if part_of:
                composition, parts = tuple(part_of), tuple(part_of.values())
                count = rank_class(parts)
                wanted[count][composition] = parts
                owner[chunk.sequence.id] = (count, composition)
        slots = {count: self._bank.stack(count).place(parts) for count, parts in wanted.items()}
        keys = {chunk.sequence.id: _BASE_ONLY for chunk in chunks}
        for sequence_id, (count, composition) in owner.items():
            keys[sequence_id] = (count, slots[count][composition])
        return keys

    def _segments(
        self, ordered: Sequence[Chunk], starts: Sequence[int], keys: dict[str, Key]
    ) -> list[GroupedSegments]:
        spans: dict[Key, list[int]] = {}
        for index, chunk in enumerate(ordered):
            key = keys[chunk.sequence.id]
            if key != _BASE_ONLY:
                spans.setdefault(key, [starts[index], 0])[1] = starts[index + 1]
        by_class: dict[int, list[Segment]] = defaultdict(list)
        for (count, slot), (start, end) in spans.items():
            by_class[count].append(Segment(slot, start, end))
        return [
            GroupedSegments(self._bank.stack(count), segments, self._device)
            for count, segments in by_class.items()
        ]

    def _virtual_rows(self, ordered: Sequence[Chunk], starts: Sequence[int]) -> list[VirtualRows]:
        found = []
        for chunk, start in zip(ordered, starts, strict=False):
            sequence = chunk.sequence
            offset = sequence.num_computed
            if offset < sequence.num_virtual:
                prompt = self._prompt(sequence)
                count = min(chunk.num_tokens, sequence.num_virtual - offset)
                found.append(VirtualRows(start, count, offset, prompt))
        return found

    def _prompt(self, sequence: EngineSequence) -> Tensor:
        prompts = (self._bank.prompt(share.digest) for share in sequence.request.adapters)
        prompt = next((prompt for prompt in prompts if prompt is not None), None)
        assert prompt is not None, "a soft prompt left the device while in use"
        return prompt

    def _attention(self, ordered: Sequence[Chunk], starts: Sequence[int]) -> AttentionPlan:
        prefills, decode_rows, decodes = [], [], []
        for chunk, start in zip(ordered, starts, strict=False):
            context = self._context(chunk)
            if chunk.num_tokens == 1:
                decode_rows.append(start)
                decodes.append(context)
            else:
                prefills.append(PrefillRows(start, start + chunk.num_tokens, context))
        return AttentionPlan(prefills, self._decode_rows(decode_rows, decodes, bool(prefills)))

    def _context(self, chunk: Chunk) -> Context:
        length = chunk.sequence.num_computed + chunk.num_tokens
        cells = chunk.sequence.cells(0, length)
        return Context(self._tensor(cells), chunk.sequence.first_cell(length))

    def _decode_rows(
        self, rows: list[int], contexts: list[Context], has_prefills: bool
    ) -> DecodeRows | None:
        if not rows:
            return None
        lengths = np.asarray([context.length for context in contexts], dtype=np.int64)
        cells = torch.nn.utils.rnn.pad_sequence(
            [context.cells for context in contexts], batch_first=True, padding_value=-1
        )
        # Padding points at the row's own first cell: a stranger's cell could hold a NaN.
        cells = torch.where(cells < 0, cells[:, :1], cells)
        row_table = np.asarray(rows, dtype=np.int64)
        return DecodeRows(
            rows=self._tensor(row_table) if has_prefills else None,
            cells=cells,
            lengths=self._tensor(lengths),
            contexts=contexts,
        )


def _positions(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    start = chunk.sequence.num_computed
    return np.arange(start, start + chunk.num_tokens, dtype=np.int64)


def _cells(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    start = chunk.sequence.num_computed
    return chunk.sequence.cells(start, start + chunk.num_tokens)


def _token_ids(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ids of the chunk's positions; 0 stands for a virtual token and is overwritten later."""
    sequence = chunk.sequence
    start = sequence.num_computed - sequence.num_virtual
    real = (
        sequence.token_ids[max(start, 0) : start + chunk.num_tokens]
        if (start + chunk.num_tokens > 0)
        else []
    )
    return np.asarray([0] * (chunk.num_tokens - len(real)) + real, dtype=np.int64)


def _sampled_rows(
    ordered: Sequence[Chunk], starts: Sequence[int]
) -> tuple[list[SampleRows], list[int]]:
    """Rows whose logits are needed: those of scored prompt tokens, and where a token is chosen."""
    samples: list[SampleRows] = []
    logit_rows: list[int] = []
    for chunk, start in zip(ordered, starts, strict=False):
        scored = _scored_rows(chunk, start)
        chosen = _chosen_rows(chunk, start)
        count = len(scored) + len(chosen)
        if count:
            samples.append(SampleRows(chunk, len(logit_rows), count, len(scored)))
            logit_rows += [*scored, *chosen]
    return samples, logit_rows


def _scored_rows(chunk: Chunk, start: int) -> range:
    """The row of token t predicts token t + 1."""
    sequence = chunk.sequence
    if sequence.next_scored is None:
        return range(0)
    first_token = sequence.num_computed - sequence.num_virtual
    skip = sequence.next_scored - 1 - first_token
    assert skip >= 0, "a row that scores was taken from the cache"
    count = min(chunk.num_tokens, sequence.num_prompt - 1 - first_token)
    return range(start + skip, start + count) if skip < count else range(0)


def _chosen_rows(chunk: Chunk, start: int) -> range:
    """The last row, once everything before it is computed."""
    sequence = chunk.sequence
    is_complete = chunk.num_tokens == sequence.num_remaining
    end = start + chunk.num_tokens
    return range(end - 1, end) if is_complete and not sequence.request.is_scoring else range(0)
