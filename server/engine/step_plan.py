"""What was chosen for one step so far: its chunks, the tokens left, the adapters it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.sequence import Sequence


class StepPlan:
    """Chunks of a step in the making, by sequence. `budget`: tokens that may still be added."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.num_tokens = 0
        self.has_pushed_out = False  # somebody, so that others could grow
        self._chunks: dict[str, Chunk] = {}

    @property
    def chunks(self) -> list[Chunk]:
        """In the order in which they were chosen."""
        return list(self._chunks.values())

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Compute the next positions of a sequence in this step."""
        self._chunks[sequence.id] = Chunk(sequence, num_tokens)
        self._count(num_tokens)

    def add_draft(self, sequence: Sequence, draft: tuple[int, ...]) -> None:
        """Guessed tokens behind a planned decode."""
        self._chunks[sequence.id] = Chunk(sequence, 1 + len(draft), draft)
        self._count(len(draft))

    def drop(self, sequence: Sequence) -> None:
        """Not in this step after all."""
        chunk = self._chunks.pop(sequence.id, None)
        if chunk is not None:
            self._count(-chunk.num_tokens)

    def _count(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens
        self.budget -= num_tokens


class RunningAdapters:
    """The distinct adapters of the running sequences, all of which are in every step.

    max_adapters: versions; max_columns: rank columns of all compositions together, where
    `columns(digest)` is what one version takes.
    """

    def __init__(
        self, *, max_adapters: int, max_columns: int, columns: Callable[[str], int]
    ) -> None:
        self._max_adapters = max_adapters
        self._max_columns = max_columns
        self._columns_of = columns
        self._versions: Counter[str] = Counter()
        self._compositions: Counter[object] = Counter()
        self._columns: dict[object, int] = {}  # of running compositions

    def has_room_for(self, sequence: Sequence) -> bool:
        """Whether a step can take the sequence's adapters in addition. It always can if they run
        already, or if nothing runs."""
        adapters = sequence.request.adapters
        if not adapters or adapters in self._compositions or not self._versions:
            return True
        new = sum(digest not in self._versions for digest in set(sequence.digests))
        if len(self._versions) + new > self._max_adapters:
            return False
        columns = self._count_columns(sequence)
        return sum(self._columns.values()) + columns <= self._max_columns

    def start(self, sequence: Sequence) -> None:
        """A sequence runs."""
        adapters = sequence.request.adapters
        if adapters:
            self._versions.update(sequence.digests)
            self._compositions[adapters] += 1
            self._columns[adapters] = self._count_columns(sequence)

    def stop(self, sequence: Sequence) -> None:
        """A sequence ran."""
        adapters = sequence.request.adapters
        if adapters:
            self._versions -= Counter(sequence.digests)
            self._compositions -= Counter([adapters])
            if adapters not in self._compositions:
                del self._columns[adapters]

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless the counts are those of the running sequences."""
        assert self._versions == Counter(d for s in running for d in s.digests)
        assert self._compositions == Counter(
            s.request.adapters for s in running if s.request.adapters
        )
        assert self._columns.keys() == self._compositions.keys()

    def _count_columns(self, sequence: Sequence) -> int:
        return sum(map(self._columns_of, sequence.digests))
