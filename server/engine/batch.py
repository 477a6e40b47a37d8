"""What crosses from the scheduler to the model runner in one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from polygraft.kernels.attention import AttentionPlan
from polygraft.kernels.native.attention import NativeAttentionPlan
from polygraft.kernels.paged.plan import PagedPlan
from polygraft.server.engine.changed_rows import ChangedRows, NormRows
from polygraft.server.engine.sequence import Sequence


class LoraUpdate(Protocol):
    """What a site does to its output for some rows of the step."""

    def add_(self, site: int, x: Tensor, y: Tensor) -> None:
        """x: [num_tokens, in]; y: [num_tokens, out], changed in place."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """`num_tokens` next positions of `sequence` to compute; a decode is a chunk of one.

    The last len(draft) of them hold guessed tokens, which count only as far as they prove right.
    """

    sequence: Sequence
    num_tokens: int
    draft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualRows:
    """Rows [start, start + count) of the step are rows [offset, ...) of a soft prompt."""

    start: int
    count: int
    offset: int
    prompt: Tensor  # [num_virtual_tokens, hidden_size]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Where one sequence's logits stand in the step: `count` rows from `first`.

    The first `num_scored` of them score prompt tokens; what is chosen follows from the others.
    """

    chunk: Chunk
    first: int
    count: int
    num_scored: int


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One flat row of tokens: prefill chunks and decodes of any adapters, ordered by adapter."""

    token_ids: Tensor  # [num_tokens] int64; 0 where a virtual token stands
    positions: Tensor  # [num_tokens] int64, counted over virtual and real tokens
    slot_mapping: Tensor  # [num_tokens] int64: KV cell of each token
    virtual: list[VirtualRows]
    attention: AttentionPlan | NativeAttentionPlan | PagedPlan
    lora: list[LoraUpdate]
    logit_rows: Tensor  # [num_logits] int64
    samples: list[SampleRows]  # in the order of logit_rows
    changed: list[ChangedRows] = field(default_factory=list)


@dataclass(slots=True)
class StepSlot:
    """The running step, as seen from inside transformers' code. One per model runner.

    Set in try/finally around the model call, so that nothing of a step outlives it.
    """

    slot_mapping: Tensor | None = None
    attention: AttentionPlan | NativeAttentionPlan | PagedPlan | None = None
    lora: list[LoraUpdate] = field(default_factory=list)
    norms: dict[str, list[NormRows]] = field(default_factory=dict)  # rows with norms of their own
