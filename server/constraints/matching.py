"""A compiled constraint and its states: which tokens may come next, asked of llguidance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from polygraft.adapters.errors import InvalidRequest


class CompiledMatcher:
    """What `ConstraintCompiler` makes. `CompiledConstraint` of the engine."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_ids = np.asarray(eos_token_ids, dtype=np.int64)

    def start(self) -> MatcherState:
        """The state before the first output token."""
        return MatcherState(self._matcher.deep_copy(), self._vocab_size, self._eos_ids)


class MatcherState:
    """One sequence's way through a constraint. `ConstraintState` of the engine."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_ids: npt.NDArray[np.int64]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._mask: npt.NDArray[np.bool_] | None = None  # until the next token

    @property
    def is_accepting(self) -> bool:
        """Whether the output so far satisfies the constraint."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether it does, and nothing can follow."""
        return self.is_accepting and not self._next_tokens().any()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocab_size], the caller's own. Raises InvalidRequest when a limit was passed."""
        mask = self._next_tokens()
        if self._matcher.is_error():
            raise InvalidRequest(
                "the constraint became too complex to follow in the midst of the output.",
                reason="INVALID_CONSTRAINT",
                item="constraint",
                hint="Make it simpler: fewer alternatives, shorter repetitions.",
            )
        return mask.copy()

    def advance(self, token_id: int) -> None:
        """Take note of a token."""
        self._matcher.consume_token(token_id)  # False is an error that `allowed` tells about
        self._mask = None

    def forced(self) -> Sequence[int]:
        """The tokens of the only text that can follow, as far as there is only one."""
        return self._matcher.compute_ff_tokens()

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may come next, one after the other."""
        return self._matcher.validate_tokens(list(token_ids))

    def _next_tokens(self) -> npt.NDArray[np.bool_]:
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
            mask[self._eos_ids] = False  # where the output may end is the engine's business
            self._mask = mask
        return self._mask
