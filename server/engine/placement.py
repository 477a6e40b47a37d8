"""Which KV blocks a sequence gets: shared prefixes, room for its prompt, growth, the index.

Decides whether there is room, not who gets it: that is the scheduler's business.
"""

from __future__ import annotations

from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.sequence import Sequence


class Placement:
    """Gives blocks of the pool to sequences. Used by the engine thread only.

    window: positions that a query sees at most, its own included, in every layer. One layer that
    sees all needs all blocks, so a model that mixes both (gemma3) gives up none.
    """

    def __init__(self, blocks: BlockPool, *, prefix_cache: bool, window: int | None = None) -> None:
        self.blocks = blocks
        self.num_cached_tokens = 0
        self._prefix_cache = prefix_cache
        self._window = window

    def admit(self, sequence: Sequence, *, is_alone: bool) -> bool:
        """Give a sequence what the prefix cache has, and blocks for all its tokens so far.

        False, and it holds nothing, if there is no room. Why for all of them and not for a first
        chunk: half a prompt in the cache is of no use to anybody, and would be the first to be
        pushed out again. While there is plenty it gets all blocks it can ever need, so that they
        are adjacent. Unless it `is_alone`, a reserve stays free for those that run to grow.
        """
        self._share_prefix(sequence)
        most = sequence.num_blocks_missing(sequence.max_positions)
        least = sequence.num_blocks_missing(sequence.num_positions)
        plenty = self.blocks.num_unused - most >= self.blocks.num_blocks // 4
        reserve = 0 if is_alone else self.blocks.num_blocks // 50
        if not (plenty or self.blocks.num_free - least >= reserve):
            self.release(sequence)
            return False
        allocated = self._allocate(sequence, most if plenty else least)
        assert allocated, "fewer blocks than were counted"
        self.num_cached_tokens += sequence.num_shared
        if sequence.first_scheduled_at is None:
            sequence.num_cached = sequence.num_shared
        return True

    def grow(self, sequence: Sequence, num_positions: int) -> bool:
        """Blocks for so many positions in all; False, and nothing changes, if there is no room."""
        return self._allocate(sequence, sequence.num_blocks_missing(num_positions))

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back; those that are indexed may be found again."""
        self.blocks.free(sequence.take_blocks())

    def index(self, sequence: Sequence) -> None:
        """Offer the full, computed blocks of a sequence whose logits were finite for sharing."""
        if not self._uses_cache(sequence):
            return
        # The last position of a scored prompt gives no logits that could tell.
        end = sequence.num_computed - (sequence.request.score_from is not None)
        keys = sequence.keys.up_to(end, sequence.token_ids)
        for index in range(sequence.num_indexed, len(keys)):
            self.blocks.index(sequence.blocks[index], keys[index])
        sequence.num_indexed = len(keys)
        self._pin_virtual(sequence, len(keys))

    def drop_unread(self, sequence: Sequence) -> None:
        """Take back the blocks that lie fully behind the window of all positions to come.

        With a prefix cache only those that were offered to it: a prefix is found from its first
        block on, so one that is lost before would make the rest useless.
        """
        if self._window is None:
            return
        first_seen = sequence.num_computed - self._window + 1
        count = max(0, first_seen) // sequence.block_size
        if self._uses_cache(sequence):
            count = min(count, sequence.num_indexed)
        self.blocks.free(sequence.drop_blocks(count))

    def lacks_virtual(self, sequence: Sequence) -> bool:
        """Whether blocks full of its virtual tokens could be shared, but are not there."""
        count = sequence.num_virtual // sequence.block_size
        if not count or not self._uses_cache(sequence):
            return False
        keys = sequence.keys.up_to(count * sequence.block_size, sequence.token_ids)
        return len(self.blocks.lookup(keys[:count])) < count

    def _uses_cache(self, sequence: Sequence) -> bool:
        return self._prefix_cache and sequence.request.prefix_cache

    def _share_prefix(self, sequence: Sequence) -> None:
        found: list[int] = []
        if self._uses_cache(sequence):
            keys = sequence.keys.up_to(sequence.num_cacheable, sequence.token_ids)
            found = self.blocks.lookup(keys)
            self.blocks.share(found)
        sequence.skip_shared(found)
        self._pin_virtual(sequence, len(found))

    def _pin_virtual(self, sequence: Sequence, num_indexed: int) -> None:
        """Of the indexed blocks those with virtual tokens only are needed by every request of the
        same adapters, whoever sends it: they stay while these are on the device."""
        count = min(sequence.num_virtual // sequence.block_size, num_indexed)
        if sequence.num_dropped:
            return  # it did so before
        self.blocks.pin(sequence.blocks[:count], sequence.digests)

    def _allocate(self, sequence: Sequence, count: int) -> bool:
        last = sequence.blocks[-1] if sequence.blocks else None
        taken = self.blocks.allocate(count, after=last)
        if taken is None:
            return False
        sequence.add_blocks(taken)
        return True
