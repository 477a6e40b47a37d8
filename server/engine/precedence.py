"""Who goes before whom: who is served first, who gives way, and to whom."""

from __future__ import annotations

from collections.abc import Iterable

from polygraft.server.engine.priorities import GUARANTEED
from polygraft.server.engine.sequence import Sequence
from polygraft.server.engine.waiting_room import WaitingRoom


class Precedence:
    """Compares sequences by class and by what their accounts were served."""

    def __init__(self, waiting: WaitingRoom, *, max_running: int) -> None:
        self._lines = waiting.lines
        self._kept = max(1, int(max_running * GUARANTEED))  # places of a lower class

    def rank(self, sequence: Sequence, order: list[int]) -> tuple[int, float, float]:
        """The smaller is served first. `order`: of the classes, in this step."""
        priority = sequence.request.priority
        return order.index(priority), *self._lines[priority].rank(sequence)

    def most_served(self, running: Iterable[Sequence]) -> Sequence:
        """Who gives way: of the lowest class the account that was served most, of that the one
        admitted last. `running` is in order of admission.

        Why the class first: a sequence that displaced one of a lower class would else be pushed
        out again for being the most served, and so on in turn.
        """

        def key(sequence: Sequence) -> tuple[int, float, float]:
            priority = sequence.request.priority
            return -priority, *self._lines[priority].rank(sequence)

        return max(reversed(list(running)), key=key)  # of equals `max` takes the first

    def displaced_by(self, waiting: Sequence, running: Iterable[Sequence]) -> Sequence | None:
        """Whose place a waiting sequence may take: one of a lower class, as long as that keeps
        its guaranteed part of the places, else one of its own class that was served more."""
        running, priority = list(running), waiting.request.priority
        below = {
            p for p, line in self._lines.items() if p < priority and line.num_running > self._kept
        }
        lower = [s for s in running if s.request.priority in below]
        if lower:
            return self.most_served(lower)
        same = (s for s in running if s.request.priority == priority)
        claims = self._lines[priority].claims(waiting, same)
        return self.most_served(claims) if claims else None
