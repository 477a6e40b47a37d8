"""Batches of rows of like length, in random order: less padding to compute on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

GROUPED_BATCHES = 8
"""Rows of so many batches are sorted together. More would pad less, but mix rows less."""


class LengthGroupedSampler(Sampler[int]):
    """Yields row numbers so that consecutive batches hold rows of like length.

    Each epoch has its own order, fixed by seed and epoch alone, so a resumed run sees the rows
    that an uninterrupted one would have seen.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = lengths
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        source = random.Random(f"{self.seed}/{self.epoch}")
        rows = list(range(len(self.lengths)))
        source.shuffle(rows)
        span = GROUPED_BATCHES * self.batch
        batches = []
        for start in range(0, len(rows), span):
            group = sorted(rows[start : start + span], key=self.lengths.__getitem__)
            batches += [group[i : i + self.batch] for i in range(0, len(group), self.batch)]
        # Why apart: a short batch anywhere but at the end would shift the borders of all after it.
        last = [batches.pop()] if len(batches[-1]) < self.batch else []
        source.shuffle(batches)
        for batch in batches + last:
            yield from batch
