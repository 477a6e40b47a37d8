"""From chunks to tensors: the flat row of tokens of one step, ordered by adapter.

Rows of one adapter are adjacent and decodes stand before chunks inside a segment; rows without
LoRA come last and cost nothing extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from polygraft.kernels.attention import AttentionPlan
from polygraft.kernels.native.attention import NativeAttentionPlan
from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.attention_tables import native_attention_plan, torch_attention_plan
from polygraft.server.engine.batch import (
    Chunk,
    ForwardBatch,
    LoraUpdate,
    SampleRows,
    VirtualRows,
)
from polygraft.server.engine.changed_rows import AffineUpdate, ChangedRows, joined
from polygraft.server.engine.lora_tables import (
    BASE_ONLY,
    Key,
    LoraTables,
    NativeLoraTables,
    Span,
    StackedLoraTables,
)
from polygraft.server.engine.messages import AdapterShare
from polygraft.server.engine.sequence import Sequence as EngineSequence


class BatchBuilder:
    """Builds `ForwardBatch` records. Engine thread only."""

    def __init__(
        self, bank: AdapterBank, device: torch.device, *, native_group: int | None
    ) -> None:
        """native_group: query heads per key head (the most of any layer) where the native kernels
        run the batches, None where torch's do."""
        self._bank = bank
        self.device = device
        self._native_group = native_group
        self._lora: LoraTables = (
            StackedLoraTables(bank, device) if native_group is None else NativeLoraTables(bank)
        )

    def build(self, chunks: Sequence[Chunk]) -> ForwardBatch:
        """The tensors of one step, for chunks whose blocks are allocated."""
        keys = self._lora.place({c.sequence.id: c.sequence.request.adapters for c in chunks})
        ordered = sorted(chunks, key=lambda c: (keys[c.sequence.id], c.num_tokens > 1))
        starts = np.cumsum([0, *(c.num_tokens for c in ordered)]).tolist()
        samples, logit_rows = sampled_rows(ordered, starts)
        updates = self._updates([keys[c.sequence.id] for c in ordered], starts)
        changed = self._changed_rows(ordered, starts, samples)
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate([token_ids_of(c) for c in ordered])),
            positions=self._tensor(np.concatenate([positions_of(c) for c in ordered])),
            slot_mapping=self._tensor(np.concatenate([cells_of(c) for c in ordered])),
            virtual=self._virtual_rows(ordered, starts),
            attention=self._attention(ordered, starts),
            lora=[AffineUpdate(changed), *updates] if changed else updates,
            logit_rows=self._tensor(np.asarray(logit_rows, dtype=np.int64)),
            samples=samples,
            changed=changed,
        )

    def updates_for(self, shares: tuple[AdapterShare, ...], num_rows: int) -> list[LoraUpdate]:
        """The updates of so many rows that all use these adapters."""
        [key] = self._lora.place({"": shares}).values()
        return self._updates([key], [0, num_rows])

    def _tensor(self, values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _updates(self, keys: Sequence[Key], starts: Sequence[int]) -> list[LoraUpdate]:
        """keys: of each chunk in order; starts: the row where each begins, and the end."""
        spans = []
        for key, group in groupby(range(len(keys)), key=lambda index: keys[index]):
            chunks = list(group)
            if key != BASE_ONLY:
                spans.append(Span(key, starts[chunks[0]], starts[chunks[-1] + 1]))
        return self._lora.updates(spans)

    def _changed_rows(
        self, ordered: Sequence[Chunk], starts: Sequence[int], samples: Sequence[SampleRows]
    ) -> list[ChangedRows]:
        if not self._bank.has_changes:
            return []
        logits = {id(sample.chunk): sample for sample in samples}
        found = []
        for index, chunk in enumerate(ordered):
            for digest in chunk.sequence.digests:
                changes = self._bank.changes(digest)
                if changes is not None:
                    sample = logits.get(id(chunk))
                    first, count = (sample.first, sample.count) if sample else (0, 0)
                    rows = starts[index], starts[index + 1], first, first + count
                    found.append(ChangedRows(*rows, changes))
        return joined(found)

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

    def _attention(
        self, ordered: Sequence[Chunk], starts: Sequence[int]
    ) -> AttentionPlan | NativeAttentionPlan:
        if self._native_group is None:
            return torch_attention_plan(ordered, starts, self.device)
        size = ordered[0].sequence.block_size
        return native_attention_plan(ordered, starts, block_size=size, group=self._native_group)


def positions_of(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    start = chunk.sequence.num_computed
    return np.arange(start, start + chunk.num_tokens, dtype=np.int64)


def cells_of(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    start = chunk.sequence.num_computed
    return chunk.sequence.cells(start, start + chunk.num_tokens)


def token_ids_of(chunk: Chunk) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ids of the chunk's positions; 0 stands for a virtual token and is overwritten later."""
    sequence = chunk.sequence
    start = sequence.num_computed - sequence.num_virtual
    end = start + chunk.num_tokens - len(chunk.draft)
    real = [*(sequence.token_ids[max(start, 0) : end] if end > 0 else []), *chunk.draft]
    return np.asarray([0] * (chunk.num_tokens - len(real)) + real, dtype=np.int64)


def sampled_rows(
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
    """The last row, once everything before it is computed, and those of guessed tokens."""
    sequence, num_drafted = chunk.sequence, len(chunk.draft)
    is_complete = chunk.num_tokens - num_drafted == sequence.num_remaining
    if not is_complete or sequence.request.is_scoring:
        return range(0)
    end = start + chunk.num_tokens
    return range(end - 1 - num_drafted, end)
