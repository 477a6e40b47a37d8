"""Free numbers as runs of neighbours, so that neighbours are found without looking at all of them.

Every operation costs O(log runs), and what Python's lists need to insert.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from itertools import pairwise


class FreeRuns:
    """A set of numbers, at first 0 .. count - 1."""

    def __init__(self, count: int) -> None:
        self._end_of: dict[int, int] = {}  # first number of a run -> one behind its last
        self._start_of: dict[int, int] = {}  # the other way round
        self._by_size: list[tuple[int, int]] = []  # (numbers, first number), sorted
        self._count = 0
        if count:
            self._open(0, count)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for start, end in self._end_of.items():
            yield from range(start, end)

    def take(self, count: int, *, after: int | None = None) -> list[int]:
        """`count` numbers of those that are there: those that follow `after` (not there itself) if
        they are enough, else the shortest run that is long enough, else as few runs as possible."""
        assert count <= self._count, "more than there are"
        taken: list[int] = []
        if count and after is not None:
            end = self._end_of.get(after + 1, after + 1)
            if end - after > count:
                return self._cut(after + 1, count)
        while len(taken) < count:
            missing = count - len(taken)
            index = bisect.bisect_left(self._by_size, (missing, 0))
            size, start = self._by_size[min(index, len(self._by_size) - 1)]
            taken += self._cut(start, min(size, missing))
        return taken

    def give(self, numbers: Iterable[int]) -> None:
        """Put numbers back that are not there."""
        for start, end in _runs(sorted(numbers)):
            self._merge(start, end)

    def check_integrity(self) -> None:
        """Raise AssertionError unless runs are apart from each other and counted right."""
        runs = sorted(self._end_of.items())
        assert self._by_size == sorted((end - start, start) for start, end in runs)
        assert self._start_of == {end: start for start, end in runs}
        assert self._count == sum(end - start for start, end in runs)
        for (_, end), (start, _) in pairwise(runs):
            assert end < start, "two runs touch"

    def _merge(self, start: int, end: int) -> None:
        before = self._start_of.get(start, start)
        if before != start:
            self._close(before)
        if end in self._end_of:
            end = self._close(end)
        self._open(before, end)

    def _cut(self, start: int, count: int) -> list[int]:
        end = self._close(start)
        if start + count < end:
            self._open(start + count, end)
        return list(range(start, start + count))

    def _open(self, start: int, end: int) -> None:
        self._end_of[start], self._start_of[end] = end, start
        bisect.insort(self._by_size, (end - start, start))
        self._count += end - start

    def _close(self, start: int) -> int:
        end = self._end_of.pop(start)
        del self._start_of[end]
        del self._by_size[bisect.bisect_left(self._by_size, (end - start, start))]
        self._count -= end - start
        return end


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """numbers: ascending. First number of each run of neighbours, and one behind its last."""
    first = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[first], numbers[index - 1] + 1
            first = index
