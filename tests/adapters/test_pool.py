"""The buddy allocator: blocks never overlap, always merge again, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from polygraft.adapters.pool import RowPool


class PoolMachine(RuleBasedStateMachine):
    @initialize(units=st.integers(0, 40))
    def make(self, units: int) -> None:
        self.pool = RowPool(16 * units)
        self.held: dict[int, int] = {}

    @rule(rows=st.integers(1, 300))
    def allocate(self, rows: int) -> None:
        row0 = self.pool.allocate(rows)
        size = self.pool.block_rows(rows)
        if row0 is None:
            assert not self.has_room(size), f"{size} rows fit between {self.held}"
            return
        assert row0 % size == 0
        assert row0 + size <= self.pool.total_rows
        for other, other_size in self.held.items():
            assert row0 + size <= other or other + other_size <= row0
        self.held[row0] = size

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        row0 = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.free(row0)
        del self.held[row0]

    def has_room(self, size: int) -> bool:
        """Whether some aligned block of this size is free of held rows, found by looking."""
        starts = range(0, self.pool.total_rows - size + 1, size)
        return any(
            all(start + size <= r or r + s <= start for r, s in self.held.items())
            for start in starts
        )

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity()
            assert self.pool.num_free == self.pool.total_rows - sum(self.held.values())


TestRowPool = PoolMachine.TestCase
TestRowPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_freed_pool_gives_its_largest_block_again() -> None:
    pool = RowPool(256)
    rows = [pool.allocate(16) for _ in range(16)]
    assert sorted(r for r in rows if r is not None) == list(range(0, 256, 16))
    assert pool.allocate(1) is None
    for row0 in (*range(0, 256, 32), *range(16, 256, 32)):
        pool.free(row0)
    assert pool.allocate(256) == 0


def test_small_blocks_are_taken_from_small_gaps() -> None:
    pool = RowPool(128)
    first, second = pool.allocate(16), pool.allocate(64)
    assert (first, second) == (0, 64)
    assert pool.allocate(16) == 16
    assert pool.allocate(32) == 32


def test_rows_are_padded_to_the_next_power_of_two() -> None:
    pool = RowPool(4096)
    assert [pool.block_rows(n) for n in (1, 16, 17, 40, 64, 65)] == [16, 16, 32, 64, 64, 128]
    assert RowPool(96).fits(64)
    assert not RowPool(96).fits(65)
    assert not RowPool(0).fits(1)


def test_freeing_what_is_not_held_is_an_error() -> None:
    pool = RowPool(64)
    with pytest.raises(KeyError):
        pool.free(0)
    pool.allocate(32)
    with pytest.raises(KeyError):
        pool.free(16)


@pytest.mark.parametrize(("rows", "unit"), [(100, 16), (-16, 16), (48, 24), (16, 0)])
def test_sizes_that_make_no_pool_are_refused(rows: int, unit: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        RowPool(rows, unit)
    with pytest.raises(ValueError, match="at least 1"):
        RowPool(16).allocate(0)
