"""After the model ran: choose, append, decide who is finished. Pure bookkeeping on sequences."""

from __future__ import annotations

from torch import Tensor

from polygraft.adapters.errors import InvalidRequest, NonFinite
from polygraft.server.engine.batch import Chunk, ForwardBatch
from polygraft.server.engine.messages import FinishReason, SequenceOutput, TokenLogprob
from polygraft.server.engine.sampling.logprobs import token_logprob
from polygraft.server.engine.sequence import Sequence
from polygraft.server.engine.step_logits import Rows, StepLogits, step_logits


def commit(
    chunks: list[Chunk], batch: ForwardBatch, computed: Tensor | StepLogits
) -> list[SequenceOutput]:
    """Advance the sequences of a step by what it computed.

    computed: logits [num_logits, vocab_size] float32, rows as `batch.samples` describes. A row that
    is not finite ends its own sequence with `NonFinite` and nobody else's; but a draft may be to
    blame: then the sequence stays where it was, without output.
    """
    logits = step_logits(computed)
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.num_tokens - len(chunk.draft)
    finite = logits.finite()
    outputs: dict[str, SequenceOutput] = {}
    for group in batch.samples:
        sequence, span = group.chunk.sequence, slice(group.first, group.first + group.count)
        if not all(finite[span]) and group.chunk.draft:
            sequence.num_computed -= 1
            sequence.speculator.stop()
            continue
        if not all(finite[span]):
            outputs[sequence.id] = _refuse(sequence)
            continue
        first_chosen = group.first + group.num_scored
        if group.num_scored:
            _record_scores(sequence, logits.rows(group.first, first_chosen))
        if first_chosen < span.stop:
            outputs[sequence.id] = _next_tokens(sequence, logits, first_chosen, group.chunk.draft)
    for chunk in chunks:
        sequence = chunk.sequence
        if sequence.request.is_scoring and not sequence.num_remaining:
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


def _next_tokens(
    sequence: Sequence, logits: StepLogits, first: int, draft: tuple[int, ...]
) -> SequenceOutput:
    """What follows the newest token, and each guessed one as long as it is what was chosen.

    first: of the 1 + len(draft) rows. The cells of guesses that were wrong are written again.
    """
    is_first = sequence.num_output == 0
    num_top = sequence.request.top_logprobs
    wanted = sequence.request.wanted_logprobs
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    reason = None
    for index, guess in enumerate((*draft, None), start=first):
        try:
            token = logits.token(index)
            if token is None:
                token = sequence.chooser.choose(logits.rows(index, index + 1)[0])
        except InvalidRequest as error:
            if tokens:
                break  # they count; the next step comes to the same row
            return SequenceOutput(sequence.id, error=error)
        sequence.num_computed += bool(tokens)  # the guess before this row was right
        sequence.append(token)
        tokens.append(token)
        if num_top is not None:
            row = logits.rows(index, index + 1)[0]
            logprobs.append(token_logprob(row, token, num_top))
        elif wanted and is_first and len(tokens) == 1:
            row = logits.rows(index, index + 1)[0]
            logprobs.append(token_logprob(row, token, 0, wanted=wanted[-1]))
        reason = _reason_to_end(sequence)
        if reason is not None or token != guess:
            break
    if draft:
        sequence.speculator.record(len(draft), len(tokens) - 1)
    return SequenceOutput(
        sequence.id,
        token_ids=tuple(tokens),
        logprobs=tuple(logprobs),
        prompt_logprobs=tuple(sequence.scores) if is_first else (),
        finish_reason=reason,
        queue_seconds=_queue_seconds(sequence) if is_first else 0.0,
        num_cached=sequence.num_cached,
    )


def _reason_to_end(sequence: Sequence) -> FinishReason | None:
    stopping = sequence.request.stopping
    if sequence.token_ids[-1] in stopping.stop_token_ids or sequence.chooser.is_finished:
        return FinishReason.STOP
    if sequence.num_output >= stopping.max_output_tokens:
        return FinishReason.LENGTH
    return None


def _queue_seconds(sequence: Sequence) -> float:
    started = sequence.first_scheduled_at
    return 0.0 if started is None else started - sequence.submitted_at


def _record_scores(sequence: Sequence, rows: Rows) -> None:
    """Row i predicts the i-th prompt token that has no score yet."""
    num_top = sequence.request.prompt_logprobs or 0
    wanted = sequence.request.wanted_logprobs
    for row in rows:
        assert sequence.next_scored is not None
        token = sequence.token_ids[sequence.next_scored]
        asked = wanted[len(sequence.scores)] if wanted else ()
        sequence.scores.append(token_logprob(row, token, num_top, wanted=asked))


def _scored(sequence: Sequence) -> SequenceOutput:
    return SequenceOutput(
        sequence.id,
        prompt_logprobs=tuple(sequence.scores),
        finish_reason=FinishReason.LENGTH,
        num_cached=sequence.num_cached,
    )
