"""Runs of free numbers: the same set as a plain one, and neighbours where there are any."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from polygraft.server.engine.free_runs import FreeRuns

SIZE = 24
TAKEN_OR_GIVEN = st.one_of(
    st.tuples(st.just("take"), st.integers(0, SIZE), st.none() | st.integers(0, SIZE)),
    st.tuples(st.just("give"), st.integers(0, SIZE), st.none()),
)


@given(st.lists(TAKEN_OR_GIVEN, max_size=60))
def test_whatever_is_taken_and_given_it_is_the_same_set(
    events: list[tuple[str, int, int | None]],
) -> None:
    runs, free = FreeRuns(SIZE), set(range(SIZE))
    for what, number, after in events:
        if what == "give":
            given_back = sorted(set(range(SIZE)) - free)[number % 3 :: 1 + number % 4]
            runs.give(reversed(given_back))
            free.update(given_back)
        elif number <= len(free):
            after = None if after in free else after
            taken = runs.take(number, after=after)
            assert len(taken) == number == len(set(taken))
            assert set(taken) <= free
            assert _longest_run(free) < number or _is_run(taken), "neighbours were there"
            if after is not None and set(range(after + 1, after + 1 + number)) <= free:
                assert taken == list(range(after + 1, after + 1 + number))
            free -= set(taken)
        assert set(runs) == free
        assert len(runs) == len(free)
        runs.check_integrity()


def test_a_short_request_leaves_the_long_runs_whole() -> None:
    runs = FreeRuns(20)
    runs.take(20)
    runs.give([*range(10), *range(12, 15)])
    assert runs.take(2) == [12, 13]
    assert runs.take(10) == list(range(10))
    assert runs.take(1, after=3) == [14]


def _is_run(numbers: list[int]) -> bool:
    return all(b == a + 1 for a, b in pairwise(numbers))


def _longest_run(numbers: set[int]) -> int:
    longest = length = 0
    for number in range(SIZE):
        length = length + 1 if number in numbers else 0
        longest = max(longest, length)
    return longest
