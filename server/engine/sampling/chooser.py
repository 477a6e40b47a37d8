"""How one sequence chooses its tokens: penalties, bias, limits, constraint, then a draw.

Order: logit bias, repetition, presence and frequency penalty, stop ids before `min_output_tokens`,
constraint, temperature, top-k, top-p, min-p, draw. It is that of transformers' `generate` for what
transformers has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.messages import EngineRequest
from polygraft.server.engine.sampling.draw import Ids, Row, draw
from polygraft.server.engine.sampling.penalties import Penalties

_NO_IDS: Ids = np.empty(0, dtype=np.int64)
_NO_VALUES: Row = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """What is done to a row before a token is drawn, in this order, for whoever does it elsewhere.

    added: to the logits of added_ids, -inf for what is impossible. repetition: what the logits of
    repeated_ids are divided by if positive, else multiplied by. subtracted: from subtracted_ids.
    """

    added_ids: Ids
    added: Row
    repetition: float
    repeated_ids: Ids
    subtracted_ids: Ids
    subtracted: Row


class TokenChooser:
    """The choices of one sequence. Engine thread only; it outlives a preemption."""

    def __init__(self, request: EngineRequest) -> None:
        sampling, stopping = request.sampling, request.stopping
        self._sampling = sampling
        self._num_prompt = len(request.prompt_token_ids)
        self._num_output = 0
        self._min_output = stopping.min_output_tokens
        self._stop_ids = np.asarray(sorted(stopping.stop_token_ids), dtype=np.int64)
        self._bias_ids = np.asarray([token for token, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.asarray([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self._penalties = None
        if Penalties.are_used(sampling):
            self._penalties = Penalties(sampling, request.prompt_token_ids)
        self._constraint = request.constraint.start() if request.constraint is not None else None

    @property
    def is_finished(self) -> bool:
        """Whether the constraint is satisfied and allows nothing more."""
        return self._constraint is not None and self._constraint.is_finished

    def choose(self, logits: Row) -> int:
        """The next token, from logits [vocab_size] that stay as they are.

        Raises InvalidRequest when the constraint cannot be followed any further.
        """
        logits = self.process(logits)
        if self._sampling.temperature == 0.0:
            return int(np.argmax(logits))  # the lowest id of equal logits
        return draw(logits, self._sampling, position=self._num_prompt + self._num_output)

    def process(self, logits: Row) -> Row:
        """What is drawn from: logits after bias, penalties, limits and constraint.

        The same array if nothing changes it, else a new one. Raises as `choose` does.
        """
        if self._changes_logits:
            logits = logits.copy()
            self._change(logits)
        return logits

    @property
    def has_penalties(self) -> bool:
        """Whether what is chosen depends on the tokens before, not only on their number."""
        return self._penalties is not None

    def edits(self, ahead: int, vocab_size: int) -> LogitEdits | None:
        """What `process` does without a constraint, when `ahead` more tokens have come; None if it
        does nothing. With penalties `ahead` must be 0."""
        is_early = self._num_output + ahead < self._min_output
        banned = self._stop_ids[self._stop_ids < vocab_size] if is_early else _NO_IDS
        if self._penalties is None and not len(self._bias_ids) and not len(banned):
            return None
        impossible = np.full(len(banned), -np.inf, dtype=np.float32)
        penalties = self._penalties
        return LogitEdits(
            np.concatenate([self._bias_ids, banned]),
            np.concatenate([self._bias, impossible]),
            self._sampling.repetition_penalty,
            _NO_IDS if penalties is None else penalties.repeated_ids,
            *((_NO_IDS, _NO_VALUES) if penalties is None else penalties.subtractions),
        )

    def take(self, token_id: int) -> None:
        """The sequence goes on with this token."""
        self._num_output += 1
        if self._penalties is not None:
            self._penalties.add(token_id)
        if self._constraint is not None and token_id not in self._stop_ids:
            self._constraint.advance(token_id)

    def forced(self) -> Sequence[int]:
        """What is likely next because the constraint leaves no other text."""
        return () if self._constraint is None else self._constraint.forced()

    def num_possible(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens the constraint lets come next, one after the other."""
        if self._constraint is None:
            return len(token_ids)
        return self._constraint.num_allowed(token_ids)

    @property
    def _changes_logits(self) -> bool:
        is_early = self._num_output < self._min_output and len(self._stop_ids) > 0
        changes = self._penalties is not None or self._constraint is not None
        return changes or is_early or len(self._bias) > 0

    def _change(self, logits: Row) -> None:
        logits[self._bias_ids] += self._bias
        if self._penalties is not None:
            self._penalties.apply(logits)
        stop_ids = self._stop_ids[self._stop_ids < len(logits)]
        if self._num_output < self._min_output:
            logits[stop_ids] = -np.inf
        if self._constraint is not None:
            allowed = self._constraint.allowed()
            # A stop id is no text: it may come where the text may end.
            allowed[stop_ids] |= self._constraint.is_accepting
            logits[~allowed] = -np.inf
            if not np.isfinite(logits.max()):
                raise InvalidRequest(
                    f"no token can follow the first {self._num_output} under this constraint.",
                    reason="INVALID_CONSTRAINT",
                    item="constraint",
                    hint="Allow more, or lower min_output_tokens.",
                )
