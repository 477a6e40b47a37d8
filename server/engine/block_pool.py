"""KV blocks: who holds them, which are free, which are kept for reuse. Knows numbers only.

A block is *held* (by one or more sequences), *kept* (nobody holds it, but its content is indexed
and may be shared again) or *free*. Kept blocks are given out when the free ones run out, the least
recently used first, and those that are *pinned* only after all others: what they hold, the virtual
tokens of a resident adapter, every request of that adapter needs. Blocks of one sequence are
adjacent where possible, because a contiguous context is read as a view.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from polygraft.server.engine.free_runs import FreeRuns


class BlockPool:
    """`num_blocks` blocks with reference counts and an index from content key to block."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = FreeRuns(num_blocks)
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._kept_pinned: OrderedDict[int, None] = OrderedDict()
        self._pinned_for: dict[int, tuple[str, ...]] = {}  # block -> all that it is pinned for
        self._holders: Counter[int] = Counter()
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be given out: free or kept."""
        return len(self._free) + len(self._kept) + len(self._kept_pinned)

    @property
    def num_unused(self) -> int:
        """Blocks that can be given out without forgetting anything."""
        return len(self._free)

    def allocate(self, count: int, *, after: int | None = None) -> list[int] | None:
        """`count` blocks, or None when fewer can be given out. Prefers neighbours.

        after: the last block the caller holds; its successors are taken if they are free.
        """
        if count == 0:  # the common case of a decode; looking for a place would scan all of them
            return []
        if count > self.num_free:
            return None
        while count > len(self._free):
            block, _ = (self._kept or self._kept_pinned).popitem(last=False)
            self._pinned_for.pop(block, None)
            self._drop_key(block)
            self._free.give([block])
        taken = self._free.take(count, after=after)
        self._holders.update(taken)
        return taken

    def lookup(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest prefix of `keys` that is indexed."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `lookup` found."""
        for block in blocks:
            self._kept.pop(block, None)
            self._kept_pinned.pop(block, None)
            self._holders[block] += 1

    def index(self, block: int, key: bytes) -> None:
        """Make the content of a held, full, computed block findable. The first of two equal
        blocks stays the one that is found."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def pin(self, blocks: Iterable[int], names: tuple[str, ...]) -> None:
        """Keep held, indexed blocks longer than others, until one of `names` is unpinned. Half of
        the pool at most, so that others are kept too."""
        for block in blocks:
            if block in self._key_of and len(self._pinned_for) < self.num_blocks // 2:
                self._pinned_for[block] = names

    def unpin(self, name: str) -> None:
        """What is pinned for a name is the first to be given out."""
        for block in [block for block, names in self._pinned_for.items() if name in names]:
            del self._pinned_for[block]
            if block in self._kept_pinned:
                del self._kept_pinned[block]
                self._kept[block] = None
                self._kept.move_to_end(block, last=False)

    def is_private(self, block: int) -> bool:
        """Whether nobody else can ever read the block: one holder, not indexed."""
        return self._holders[block] == 1 and block not in self._key_of

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Freeing a block that is not held is a bug and raises KeyError."""
        unused = []
        for block in reversed(list(blocks)):  # the end of a prefix is evicted before its start
            if block not in self._holders:
                raise KeyError(block)
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._pinned_for:
                self._kept_pinned[block] = None
            elif block in self._key_of:
                self._kept[block] = None
            else:
                unused.append(block)
        self._free.give(unused)

    def check_integrity(self, holders: Counter[int]) -> None:
        """Raise AssertionError unless held, kept and free blocks are a partition of the pool and
        `holders` (block -> sequences that name it) are those that are counted."""
        self._free.check_integrity()
        assert holders == self._holders, "reference counts differ from the block tables"
        parts = [*self._free, *self._kept, *self._kept_pinned, *self._holders]
        assert sorted(parts) == list(range(self.num_blocks)), "a block was lost or is held twice"
        kept = [*self._kept, *self._kept_pinned]
        assert all(block in self._key_of for block in kept), "a kept block is not indexed"
        assert self._kept_pinned.keys() <= self._pinned_for.keys() <= self._key_of.keys()
        assert {b: k for k, b in self._block_of.items()} == self._key_of, "the index is not 1:1"

    def _drop_key(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
