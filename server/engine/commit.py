"""After the model ran: sample, append, decide who is finished. Pure bookkeeping on sequences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polygraft.adapters.errors import NonFinite
from polygraft.server.engine.batch import Chunk, ForwardBatch
from polygraft.server.engine.messages import FinishReason, SequenceOutput
from polygraft.server.engine.sampler import Row, sample, token_logprob
from polygraft.server.engine.sequence import Sequence


def commit(chunks: list[Chunk], batch: ForwardBatch, logits: Tensor) -> list[SequenceOutput]:
    """Advance the sequences of a step by what it computed.

    logits: [num_logits, vocab_size] float32, rows as `batch.samples` describes. A row that is not
    finite ends its own sequence with `NonFinite` and nobody else's.
    """
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.num_tokens
    # A sum is finite iff every term is, short of overflow, which is as bad.
    finite = torch.isfinite(logits.sum(-1)).tolist()
    rows = logits.numpy()
    outputs: dict[str, SequenceOutput] = {}
    for group in batch.samples:
        sequence, span = group.chunk.sequence, slice(group.first, group.first + group.count)
        if not all(finite[span]):
            outputs[sequence.id] = _refuse(sequence)
        elif sequence.request.score_from is not None:
            _record_scores(sequence, group.chunk, rows[span])
        else:
            outputs[sequence.id] = _next_token(sequence, rows[group.first])
    for chunk in chunks:
        sequence = chunk.sequence
        if sequence.request.score_from is not None and not sequence.num_remaining:
            outputs.setdefault(sequence.id, _scored(sequence))
    return list(outputs.values())


def ended(sequence: Sequence) -> SequenceOutput:
    """The last output of a sequence that ended outside a step (cancelled, expired, failed)."""
    return SequenceOutput(
        sequence.id,
        finish_reason=sequence.finish_reason,
        error=sequence.error,
        num_cached=sequence.num_cached,
    )


def _refuse(sequence: Sequence) -> SequenceOutput:
    error = NonFinite(
        "the model produced NaN or Inf for this request; it was ended, others were not affected.",
        hint="Try another adapter version or prompt.",
    )
    return SequenceOutput(sequence.id, error=error)


def _next_token(sequence: Sequence, row: Row) -> SequenceOutput:
    request = sequence.request
    token = sample(row, request.sampling, position=len(sequence.token_ids))
    logprobs = request.top_logprobs
    sequence.token_ids.append(token)
    reason = None
    if token in request.stopping.stop_token_ids:
        reason = FinishReason.STOP
    elif sequence.num_output >= request.stopping.max_output_tokens:
        reason = FinishReason.LENGTH
    queue_seconds = 0.0
    if sequence.num_output == 1 and sequence.first_scheduled_at is not None:
        queue_seconds = sequence.first_scheduled_at - sequence.submitted_at
    return SequenceOutput(
        sequence.id,
        token_ids=(token,),
        logprobs=() if logprobs is None else (token_logprob(row, token, logprobs),),
        finish_reason=reason,
        queue_seconds=queue_seconds,
        num_cached=sequence.num_cached,
    )


def _record_scores(sequence: Sequence, chunk: Chunk, rows: npt.NDArray[np.float32]) -> None:
    """rows: [count, vocab_size]; row i predicts the i-th scored token of the chunk."""
    score_from = sequence.request.score_from
    assert score_from is not None
    first = sequence.num_computed - chunk.num_tokens - sequence.num_virtual
    token = max(score_from, first + 1)
    for row in rows:
        top = sequence.request.prompt_logprobs or 0
        sequence.scores[token] = token_logprob(row, sequence.token_ids[token], top)
        token += 1


def _scored(sequence: Sequence) -> SequenceOutput:
    return SequenceOutput(
        sequence.id,
        prompt_logprobs=tuple(sequence.scores[token] for token in sorted(sequence.scores)),
        finish_reason=FinishReason.LENGTH,
        num_cached=sequence.num_cached,
    )
