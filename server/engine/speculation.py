"""Self-speculation: guess the next tokens of a sequence from what it repeats. No tensors.

Prompt lookup: where the last tokens stood before, what followed then is likely to follow now. The
guess is checked by the model itself in one step, so a wrong one costs time and never changes a
token. It knows the sequence's own tokens only, hence nothing of other requests or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 3  # tokens that must agree; fewer only if so many were not found
_SHORTEST = 2
_MEMORY = 0.75  # of the acceptance so far, after another draft
_PAYS = 0.3  # accepted part of the drafted tokens below which drafting costs more than it gives
_LONGEST_PAUSE = 64  # steps
_MOST_FILED = 2048  # positions in one step, some milliseconds: a long prompt is filed over several


class NgramIndex:
    """Where the last tokens of a growing list stood before. O(1) per token.

    tokens: the list itself, which its owner appends to and never changes otherwise.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._num_indexed = 1  # position 0 follows nothing
        self._after: dict[tuple[int, ...], int] = {}  # position behind the last occurrence

    def find(self) -> int | None:
        """The position behind the most recent earlier occurrence of the last three tokens, else of
        the last two; None if there is none, or not all of a long list is filed yet."""
        self._catch_up()
        if self._num_indexed < len(self._tokens):
            return None  # what would be found is not the most recent one
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            # A list shorter than `size` gives a shorter key, which stands for itself only.
            found = self._after.get(tuple(self._tokens[-size:]))
            if found is not None:
                return found
        return None

    def _catch_up(self) -> None:
        """Position p is filed under the tokens before it; the end of the list is no position yet,
        so the last tokens do not find themselves."""
        tokens = self._tokens
        end = min(len(tokens), self._num_indexed + _MOST_FILED)
        for position in range(self._num_indexed, end):
            for size in range(_SHORTEST, _LONGEST + 1):
                if size <= position:
                    self._after[tuple(tokens[position - size : position])] = position
        self._num_indexed = max(self._num_indexed, end)


class Speculator:
    """The guesses of one sequence, and whether they pay. Engine thread only.

    Guesses as many tokens as were accepted lately and one more. If too few are, it pauses, twice
    as long each time, and tries again.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._index = NgramIndex(tokens)
        self._is_stopped = False
        self._length = 2
        self._acceptance = 1.0  # moving average of the accepted part
        self._pause = 1  # steps of the next one
        self._resting = 0  # steps left of this one

    def draft(self, count: int, forced: Sequence[int] = ()) -> tuple[int, ...]:
        """Up to `count` tokens that may come next; empty if it has no idea, or pauses.

        forced: what is likely to come for another reason; better than anything looked up.
        """
        if self._resting:
            self._resting -= 1
            return ()
        if self._is_stopped or count < 1:
            return ()
        if forced:
            return tuple(forced[: min(count, self._length)])
        start = self._index.find()
        if start is None:
            return ()
        # What is copied may run into itself: a loop is guessed on and on.
        period = len(self._tokens) - start
        return tuple(self._tokens[start + i % period] for i in range(min(count, self._length)))

    def record(self, num_drafted: int, num_accepted: int) -> None:
        """What became of the last draft."""
        self._length = num_accepted + 1 if num_accepted < num_drafted else 2 * num_drafted
        part = num_accepted / num_drafted
        self._acceptance = _MEMORY * self._acceptance + (1 - _MEMORY) * part
        if self._acceptance >= _PAYS:
            self._pause = 1
        elif num_accepted == 0:
            self._resting = self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def stop(self) -> None:
        """No drafts any more."""
        self._is_stopped = True
