"""KV blocks: which are free. Knows numbers only, no tensors.

Blocks of one sequence are adjacent where possible, because a contiguous context is read as a view.
"""

from __future__ import annotations

import bisect


class BlockPool:
    """Free list of `num_blocks` blocks, kept sorted so that runs of neighbours can be found."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self, count: int, *, after: int | None = None) -> list[int] | None:
        """`count` blocks, or None when fewer are free. Prefers neighbours.

        after: the last block the caller holds; its successors are taken if they are free.
        """
        if count > len(self._free):
            return None
        if count == 0:
            return []
        start = self._successor(after) if after is not None else None
        if start is None:
            start = self._run(count)
        index = 0 if start is None else start
        taken = self._free[index : index + count]
        if len(taken) < count:  # the run reached the end: wrap around
            taken = self._free[:count]
            index = 0
        del self._free[index : index + count]
        self._used.update(taken)
        return taken

    def free(self, blocks: list[int]) -> None:
        """Give blocks back. Freeing a block that is not held is a bug and raises."""
        for block in blocks:
            self._used.remove(block)
            bisect.insort(self._free, block)

    def check_integrity(self) -> None:
        """Raise AssertionError if free and used blocks are not a partition of the pool."""
        assert len(self._free) == len(set(self._free)), "a block is free twice"
        assert not self._used & set(self._free), "a block is both free and used"
        assert len(self._free) + len(self._used) == self.num_blocks, "blocks were lost"

    def _successor(self, block: int) -> int | None:
        index = bisect.bisect_left(self._free, block + 1)
        return index if index < len(self._free) and self._free[index] == block + 1 else None

    def _run(self, count: int) -> int | None:
        """Index of the first run of `count` adjacent free blocks."""
        length = 0
        for index, block in enumerate(self._free):
            length = length + 1 if index and block == self._free[index - 1] + 1 else 1
            if length == count:
                return index - count + 1
        return None
