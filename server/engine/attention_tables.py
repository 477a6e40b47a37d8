"""Which rows of a step attend to which cells: tables for the native kernel, or for torch's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from polygraft.kernels.attention import AttentionPlan, Context, DecodeRows, PrefillRows
from polygraft.kernels.native.attention import NativeAttentionPlan
from polygraft.kernels.segments import SequenceRows
from polygraft.server.engine.batch import Chunk


def native_attention_plan(
    chunks: Sequence[Chunk], starts: Sequence[int], *, block_size: int, group: int
) -> NativeAttentionPlan:
    """chunks in the order of the step, chunk i from row starts[i]."""
    rows = []
    for chunk, start in zip(chunks, starts, strict=False):
        length = chunk.sequence.num_computed + chunk.num_tokens
        blocks = chunk.sequence.block_table[: -(-length // block_size)]
        rows.append(SequenceRows(start, chunk.num_tokens, length, blocks))
    return NativeAttentionPlan(rows, block_size=block_size, group=group)


def torch_attention_plan(
    chunks: Sequence[Chunk], starts: Sequence[int], device: torch.device
) -> AttentionPlan:
    """chunks in the order of the step, chunk i from row starts[i]."""
    prefills, decode_rows, decodes = [], [], []
    for chunk, start in zip(chunks, starts, strict=False):
        context = _context(chunk, device)
        if chunk.num_tokens == 1:
            decode_rows.append(start)
            decodes.append(context)
        else:
            prefills.append(PrefillRows(start, start + chunk.num_tokens, context))
    return AttentionPlan(prefills, _decode_rows(decode_rows, decodes, bool(prefills), device))


def _context(chunk: Chunk, device: torch.device) -> Context:
    length = chunk.sequence.num_computed + chunk.num_tokens
    cells = torch.from_numpy(chunk.sequence.cells(0, length)).to(device)
    return Context(cells, chunk.sequence.first_cell(length))


def _decode_rows(
    rows: list[int], contexts: list[Context], has_prefills: bool, device: torch.device
) -> DecodeRows | None:
    if not rows:
        return None
    lengths = np.asarray([context.length for context in contexts], dtype=np.int64)
    cells = torch.nn.utils.rnn.pad_sequence(
        [context.cells for context in contexts], batch_first=True, padding_value=-1
    )
    # Padding points at the row's own first cell: a stranger's cell could hold a NaN.
    cells = torch.where(cells < 0, cells[:, :1], cells)
    row_table = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
    return DecodeRows(
        rows=row_table if has_prefills else None,
        cells=cells,
        lengths=torch.from_numpy(lengths).to(device),
        contexts=contexts,
    )
