"""Blocks by their numbers: who holds them, which are kept, which go first."""

from __future__ import annotations

from collections import Counter

import pytest

from polygraft.server.engine.block_pool import BlockPool


def test_freeing_a_block_twice_is_an_error() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(KeyError):
        pool.free(blocks)


def test_nothing_is_given_out_unless_all_of_it_can_be() -> None:
    pool = BlockPool(4)
    held = pool.allocate(3)
    assert held == [0, 1, 2]
    assert pool.allocate(2) is None
    pool.check_integrity(Counter(held))
    assert pool.allocate(1, after=2) == [3]


def test_kept_blocks_are_given_out_last_and_the_end_of_a_prefix_before_its_start() -> None:
    pool = BlockPool(5)
    held = pool.allocate(3)
    assert held is not None
    for block in held:
        pool.index(block, bytes([block]))
    pool.free(held)
    assert (pool.num_free, pool.num_unused) == (5, 2)
    assert pool.allocate(3) == [2, 3, 4]
    assert pool.lookup([bytes([0]), bytes([1]), bytes([2])]) == [0, 1]
    pool.check_integrity(Counter([2, 3, 4]))
