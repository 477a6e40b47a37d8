"""Virtual tokens of a set of adapters are computed once, by the first that needs them.

Requests that come together for adapters whose keys and values are not in the prefix cache yet would
each compute them, and each fill blocks with them. So one does, and the others are admitted when its
full blocks of virtual tokens can be found.
"""

from __future__ import annotations

from polygraft.server.engine.messages import AdapterShare
from polygraft.server.engine.placement import Placement
from polygraft.server.engine.sequence import Sequence
from polygraft.server.engine.waiting_room import WaitingRoom


class VirtualWriters:
    """Running sequences that bring virtual tokens into the cache. Engine thread only."""

    def __init__(self, placement: Placement, waiting: WaitingRoom) -> None:
        self._placement = placement
        self._waiting = waiting
        self._writers: dict[tuple[AdapterShare, ...], Sequence] = {}

    def make_wait(self, sequence: Sequence) -> bool:
        """Whether a sequence in line now waits for another one to have written them."""
        writer = self._writers.get(sequence.request.adapters)
        # Why not for a lower class: it may be served slowly.
        if writer is None or writer.request.priority < sequence.request.priority:
            return False
        if not self._placement.lacks_virtual(sequence):
            return False
        self._waiting.remove(sequence)
        self._waiting.wait_for_sibling(sequence, _place(writer))
        return True

    def start(self, sequence: Sequence) -> None:
        """A sequence was admitted; it writes them if they are not there and nobody does."""
        adapters = sequence.request.adapters
        if adapters not in self._writers and self._placement.lacks_virtual(sequence):
            self._writers[adapters] = sequence

    def take_waiting(self, sequence: Sequence, *, has_ended: bool) -> list[Sequence]:
        """Those that waited for this one, if it has written them or will not any more."""
        adapters = sequence.request.adapters
        if self._writers.get(adapters) is not sequence:
            return []
        if not has_ended and self._placement.lacks_virtual(sequence):
            return []
        del self._writers[adapters]
        return self._waiting.take_for_sibling(_place(sequence))


def _place(writer: Sequence) -> str:
    """Where they wait, apart from those that wait for its whole prompt."""
    return f"virtual tokens of {writer.id}"
