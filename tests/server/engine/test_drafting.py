"""Guesses: what they are, when they are made, and in which rows of a step."""

from __future__ import annotations

from engine_support.stepping import BLOCK, Stepper
from hypothesis import given
from hypothesis import strategies as st

from polygraft.server.engine.drafting import DraftLimits
from polygraft.server.engine.speculation import NgramIndex, Speculator

LOOP = (1, 2, 3, 4) * 3


def search(tokens: list[int]) -> int | None:
    """Slow and plain: the position behind the latest earlier occurrence of the last 3, else 2."""
    for size in (3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                return end
    return None


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.booleans(), min_size=60, max_size=60))
def test_the_index_finds_what_a_search_finds(tokens: list[int], asks: list[bool]) -> None:
    grown: list[int] = []
    index = NgramIndex(grown)
    for token, is_asked in zip(tokens, asks, strict=False):
        grown.append(token)
        if is_asked:
            assert index.find() == search(grown)
    assert index.find() == search(grown)


def test_a_loop_is_guessed_beyond_its_own_end() -> None:
    speculator = Speculator([9, 9, 9])
    speculator.record(4, 4)
    assert speculator.draft(7) == (9,) * 7
    speculator = Speculator([*LOOP, 1])
    speculator.record(4, 4)
    assert speculator.draft(6) == (2, 3, 4, 1, 2, 3)


def test_nothing_is_guessed_where_nothing_is_repeated_or_wanted() -> None:
    assert Speculator(list(range(50))).draft(4) == ()
    assert Speculator([]).draft(4) == ()
    assert Speculator(list(LOOP)).draft(0) == ()


def test_guesses_that_are_wrong_get_rare_and_come_back_when_right() -> None:
    speculator = Speculator(list(LOOP))

    def num_drafts(num_steps: int, accepted: int) -> int:
        count = 0
        for _ in range(num_steps):
            if draft := speculator.draft(4):
                count += 1
                speculator.record(len(draft), min(accepted, len(draft)))
        return count

    assert num_drafts(400, accepted=0) < 20
    assert num_drafts(400, accepted=4) > 300


def planned(stepper: Stepper) -> dict[str, int]:
    return {chunk.sequence.id: chunk.num_tokens for chunk in stepper.scheduler.plan(0.0)}


def in_loop(*, max_rows: int, **limits: int) -> Stepper:
    """Three sequences that repeat themselves and have at least one token."""
    drafts = DraftLimits(is_default=True, max_tokens=2, max_rows=max_rows)
    stepper = Stepper(prefix_cache=False, drafts=drafts, **limits)
    sequences = [stepper.submit(name, tuple(range(20, 31)), 30) for name in "abc"]
    while not all(sequence.num_output for sequence in sequences):
        stepper.step()
    for sequence in sequences:
        sequence.token_ids[:] = (LOOP * 2)[: len(sequence.token_ids)]
        sequence.speculator = Speculator(sequence.token_ids)
    return stepper


def test_drafts_take_rows_that_nobody_else_wants() -> None:
    assert sorted(planned(in_loop(max_rows=64)).values()) == [3, 3, 3]
    assert sorted(planned(in_loop(max_rows=6)).values()) == [1, 2, 3]
    assert sorted(planned(in_loop(max_rows=3)).values()) == [1, 1, 1]


def test_a_prompt_goes_before_drafts() -> None:
    stepper = in_loop(max_rows=64, max_batch_tokens=12)
    stepper.submit("prompt", 8, 2)
    assert sorted(planned(stepper).items()) == [("a", 2), ("b", 1), ("c", 1), ("prompt", 8)]


def test_nobody_is_pushed_out_for_a_draft() -> None:
    stepper = in_loop(max_rows=64)
    sequences = list(stepper.scheduler.running.values())
    rooms = []
    for sequence in sequences:  # as if the pool were used up
        held = -(-sequence.num_positions // BLOCK)
        stepper.blocks.free(sequence.blocks[held:])
        del sequence.blocks[held:]
        rooms.append(held * BLOCK - sequence.num_computed)
    taken = stepper.blocks.allocate(stepper.blocks.num_free, after=None)
    assert taken
    sizes = planned(stepper)
    assert list(stepper.scheduler.running.values()) == sequences
    assert sizes == {s.id: 3 if room >= 3 else 1 for s, room in zip(sequences, rooms, strict=True)}
    assert 1 in sizes.values()


def test_a_request_may_want_or_refuse_guesses() -> None:
    for is_default, wanted, expected in ((True, False, False), (False, True, True)):
        stepper = Stepper(drafts=DraftLimits(is_default, max_tokens=4, max_rows=64))
        sequence = stepper.submit("r", 11, 30, speculation=wanted)
        while not sequence.num_output:
            stepper.step()
        sequence.token_ids[:] = [7, 8, 9, 5, 6, 7, 8, 9, 1, 7, 8, 9]
        (chunk,) = stepper.scheduler.plan(0.0)
        assert bool(chunk.draft) == expected


def test_a_long_prompt_is_filed_over_several_steps() -> None:
    tokens = [*range(3000), *range(3000)]
    index = NgramIndex(tokens)
    found = [index.find() for _ in range(4)]
    assert found == [None, None, 3000, 3000]
