"""What the tokens so far do to the next one's logits. Virtual tokens are not among them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from polygraft.server.engine.messages import Sampling
from polygraft.server.engine.sampling.draw import Ids, Row


class Penalties:
    """Repetition, presence and frequency penalty of one sequence, kept up as tokens come.

    repetition_penalty, as transformers' RepetitionPenaltyLogitsProcessor: the logit of each token
    of the prompt or the output is divided by it if positive, multiplied by it if negative, once.
    presence_penalty and frequency_penalty, as OpenAI and vLLM define them: subtracted from the
    logit of each token of the output alone, once and once per occurrence.
    """

    def __init__(self, sampling: Sampling, prompt_token_ids: tuple[int, ...]) -> None:
        self._repetition = np.float32(sampling.repetition_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._output = _Tally(())
        self._seen = _Tally(prompt_token_ids if sampling.repetition_penalty != 1.0 else ())

    @staticmethod
    def are_used(sampling: Sampling) -> bool:
        """Whether there is anything to do."""
        return (
            sampling.repetition_penalty != 1.0
            or sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
        )

    def add(self, token_id: int) -> None:
        """Take note of an output token."""
        self._output.add(token_id)
        self._seen.add(token_id)

    def apply(self, logits: Row) -> None:
        """Change a row in place; repetition first."""
        ids = self.repeated_ids
        if len(ids):
            values = logits[ids]
            logits[ids] = np.where(values < 0, values * self._repetition, values / self._repetition)
        ids, subtracted = self.subtractions
        if len(ids):
            logits[ids] -= subtracted

    @property
    def repeated_ids(self) -> Ids:
        """[n] tokens that the repetition penalty is for."""
        return self._seen.ids if self._repetition != 1.0 else self._seen.ids[:0]

    @property
    def subtractions(self) -> tuple[Ids, Row]:
        """[n] tokens, and what is subtracted from the logit of each."""
        if not self._presence and not self._frequency:
            return self._output.ids[:0], self._output.counts[:0]
        return self._output.ids, self._presence + self._frequency * self._output.counts


class _Tally:
    """How often each token came, as arrays that grow."""

    def __init__(self, once: Iterable[int]) -> None:
        """once: tokens that are there from the start, however often they came."""
        self._place = {token: place for place, token in enumerate(dict.fromkeys(once))}
        size = len(self._place)
        self._ids: Ids = np.empty(size + 16, dtype=np.int64)
        self._ids[:size] = list(self._place)
        self._counts: npt.NDArray[np.float32] = np.zeros(size + 16, dtype=np.float32)
        self._counts[:size] = 1

    @property
    def ids(self) -> Ids:
        """[n] the different tokens."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """[n] how often each of `ids` came."""
        return self._counts[: len(self._place)]

    def add(self, token_id: int) -> None:
        """One more occurrence."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1
