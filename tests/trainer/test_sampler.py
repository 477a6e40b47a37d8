"""Batches of like length, every row once per epoch, another order each epoch."""

import random

from polygraft.trainer.sampler import LengthGroupedSampler

LENGTHS = [random.Random(i).randint(20, 200) for i in range(603)]


def padded(order: list[int], batch: int) -> int:
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    return sum(len(rows) * max(LENGTHS[row] for row in rows) for rows in batches)


def test_every_row_comes_once_and_padding_shrinks() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 16, seed=0))
    assert sorted(order) == list(range(len(LENGTHS)))
    shuffled = random.Random(0).sample(order, len(order))
    assert padded(order, 16) < 1.15 * sum(LENGTHS) < 0.85 * padded(shuffled, 16)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 16, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first != list(LengthGroupedSampler(LENGTHS, 16, seed=1))
