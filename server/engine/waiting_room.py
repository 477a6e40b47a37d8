"""Where sequences are that do not run: in line, waiting for an adapter, or for a sibling.

Only those in line are looked at in every step, so that a thousand others cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from polygraft.server.engine.fairness import FairLine, FairRules
from polygraft.server.engine.messages import PRIORITIES
from polygraft.server.engine.sequence import Sequence


class WaitingRoom:
    """Waiting sequences by id, each in exactly one place."""

    def __init__(self, rules: FairRules) -> None:
        self.lines = {priority: FairLine(rules) for priority in PRIORITIES}
        self.num_cold_waits = 0
        self._all: dict[str, Sequence] = {}
        self._leave: dict[str, Callable[[Sequence], object]] = {}  # out of the place it is in
        self._for_adapter: dict[str, dict[str, Sequence]] = {}  # digest -> those it keeps waiting
        self._for_sibling: dict[str, dict[str, Sequence]] = {}  # id -> those it keeps waiting

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._all

    def __getitem__(self, request_id: str) -> Sequence:
        return self._all[request_id]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._all.values())

    def get(self, request_id: str) -> Sequence | None:
        """The waiting sequence of that id."""
        return self._all.get(request_id)

    def line_of(self, sequence: Sequence) -> FairLine:
        """The line of its priority class."""
        return self.lines[sequence.request.priority]

    @property
    def num_in_line(self) -> int:
        """Sequences that could be admitted."""
        return sum(line.num_waiting for line in self.lines.values())

    @property
    def num_loading(self) -> int:
        """Sequences that wait for an adapter. May be asked by any thread."""
        return sum(map(len, list(self._for_adapter.values())))

    def enter_line(self, sequence: Sequence) -> None:
        """It can be admitted; before those of its account that never ran, if it did."""
        line = self.line_of(sequence)
        line.add(sequence, in_front=sequence.first_scheduled_at is not None)
        self._put(sequence, line.remove)

    def wait_for_adapter(self, sequence: Sequence, digest: str) -> None:
        """It cannot be admitted before the version is on the device."""
        self.num_cold_waits += 1
        self._wait_for(self._for_adapter, digest, sequence)

    def wait_for_sibling(self, sequence: Sequence, request_id: str) -> None:
        """It shall not be admitted before another sequence's prompt is computed."""
        self._wait_for(self._for_sibling, request_id, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take it out, wherever it is."""
        del self._all[sequence.id]
        self._leave.pop(sequence.id)(sequence)

    def take_for_adapter(self, digest: str) -> list[Sequence]:
        """Take out those that wait for a version, in order of arrival."""
        return self._take(self._for_adapter, digest)

    def take_for_sibling(self, request_id: str) -> list[Sequence]:
        """Take out those that wait for a sequence, in order of arrival."""
        return self._take(self._for_sibling, request_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every sequence is in one place, and the lines are right."""
        for line in self.lines.values():
            line.check_integrity()
        apart = [*self._for_adapter.values(), *self._for_sibling.values()]
        assert all(apart), "an empty place was kept"
        assert len(self._all) == self.num_in_line + sum(map(len, apart)), (
            "a sequence waits nowhere or twice"
        )
        assert self._leave.keys() == self._all.keys()

    def _put(self, sequence: Sequence, leave: Callable[[Sequence], object]) -> None:
        assert sequence.id not in self._all, f"{sequence.id} waits already"
        self._all[sequence.id] = sequence
        self._leave[sequence.id] = leave

    def _wait_for(
        self, places: dict[str, dict[str, Sequence]], key: str, sequence: Sequence
    ) -> None:
        places.setdefault(key, {})[sequence.id] = sequence

        def leave(sequence: Sequence) -> None:
            del places[key][sequence.id]
            if not places[key]:
                del places[key]

        self._put(sequence, leave)

    def _take(self, places: dict[str, dict[str, Sequence]], key: str) -> list[Sequence]:
        taken = list(places.get(key, {}).values())
        for sequence in taken:
            self.remove(sequence)
        return taken
