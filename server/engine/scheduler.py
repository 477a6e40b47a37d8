"""Who runs in the next step. Pure Python: no tensors, no threads, no clock of its own.

Decodes come first, then running prompts in chunks, then admissions, all under one token budget, so
a long prompt never delays anybody's next token by more than one chunk. A sequence whose adapter is
not on the device yet is passed over, not blocked on. When blocks run out, the sequence admitted
last gives its blocks back and is computed again later (preemption by recompute).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.messages import FinishReason
from polygraft.server.engine.sequence import Sequence, SequenceState


class AdapterPort(Protocol):
    """What the scheduler asks about adapters. Answers must be cheap: it asks every step."""

    def is_ready(self, *digests: str) -> bool:
        """Whether the versions are all on the device; without `hold` they may leave it again."""
        ...

    def hold(self, *digests: str) -> bool:
        """Keep the versions on the device until they are dropped; all of them or, when False,
        none: one is not there, or others have waited longer for its place."""
        ...

    def failure(self, *digests: str) -> Exception | None:
        """Why one of the versions could not be loaded, if one could not."""
        ...


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Caps of one step."""

    max_running: int
    max_batch_tokens: int
    max_chunk: int


class Scheduler:
    """Waiting and running sequences and the blocks they hold. Used by the engine thread only."""

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockPool,
        adapters: AdapterPort,
        *,
        prefix_cache: bool,
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self._adapters = adapters
        self._prefix_cache = prefix_cache
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        self.running: OrderedDict[str, Sequence] = OrderedDict()
        self.num_preemptions = 0
        self.num_cached_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting[sequence.id] = sequence

    def abort(self, request_id: str) -> None:
        """End a sequence in any state; an unknown id is ignored."""
        sequence = self.waiting.get(request_id) or self.running.get(request_id)
        if sequence is not None:
            sequence.is_aborted = True

    def sweep(self, now: float) -> list[Sequence]:
        """Take out what is cancelled, expired or cannot be served; each has its reason set."""
        ended = []
        for sequence in [*self.waiting.values(), *self.running.values()]:
            if sequence.is_aborted:
                sequence.finish_reason = FinishReason.CANCELLED
            elif sequence.expires_at is not None and now >= sequence.expires_at:
                sequence.finish_reason = FinishReason.TIME_LIMIT
            elif sequence.state is SequenceState.WAITING:
                sequence.error = self._adapters.failure(*sequence.digests)
            if sequence.finish_reason is not None or sequence.error is not None:
                ended.append(sequence)
        for sequence in ended:
            self.finish(sequence)
        return ended

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        self.waiting.pop(sequence.id, None)
        self.running.pop(sequence.id, None)
        self.blocks.free(sequence.take_blocks())
        sequence.state = SequenceState.FINISHED

    def plan(self, now: float) -> list[Chunk]:
        """The chunks of the next step; their blocks are allocated."""
        budget = self.limits.max_batch_tokens
        chunks: list[Chunk] = []
        running = list(self.running.values())
        preemptions = self.num_preemptions
        # Stable sort: decodes first, each kind in order of admission.
        for sequence in sorted(running, key=lambda s: s.num_remaining > 1):
            size = min(sequence.num_remaining, budget, self.limits.max_chunk)
            # Making room for an earlier one may have pushed this one out of `running`.
            if sequence.id in self.running and size and self._grow(sequence, size, chunks):
                chunks.append(Chunk(sequence, size))
                budget -= size
        if self.num_preemptions > preemptions:
            return chunks  # whoever was pushed out must not take the room straight back
        return self._admit(chunks, budget, now)

    def _admit(self, chunks: list[Chunk], budget: int, now: float) -> list[Chunk]:
        for sequence in list(self.waiting.values()):
            if budget == 0 or len(self.running) >= self.limits.max_running:
                break
            if not self._hold_adapters(sequence):
                continue
            size = self._admit_blocks(sequence, budget)
            if not size:
                break  # in order: a small request must not starve a large one
            del self.waiting[sequence.id]
            self.running[sequence.id] = sequence
            sequence.state = SequenceState.RUNNING
            if sequence.first_scheduled_at is None:
                sequence.first_scheduled_at = now
            chunks.append(Chunk(sequence, size))
            budget -= size
        return chunks

    def _hold_adapters(self, sequence: Sequence) -> bool:
        """Whether all adapters of the sequence are on the device, to stay until it ends."""
        if not sequence.holds_adapters:
            digests = sequence.digests
            ready = self._adapters.is_ready(*digests)  # without a lock: asked in every step
            sequence.holds_adapters = not digests or (ready and self._adapters.hold(*digests))
        return sequence.holds_adapters

    def _admit_blocks(self, sequence: Sequence, budget: int) -> int:
        """Give a sequence what the prefix cache has and blocks for its first chunk; returns the
        size of the chunk, 0 if there is no room.

        While there is plenty it gets all blocks it can ever need, so that they are adjacent. A
        small reserve stays free for the growth of running sequences.
        """
        self._share_prefix(sequence)
        size = min(sequence.num_remaining, budget, self.limits.max_chunk)
        most = sequence.num_blocks_missing(sequence.max_positions)
        least = sequence.num_blocks_missing(sequence.num_computed + size)
        plenty = self.blocks.num_unused - most >= self.blocks.num_blocks // 4
        reserve = self.blocks.num_blocks // 50 if self.running else 0
        blocks = None
        if plenty or self.blocks.num_free - least >= reserve:
            last = sequence.blocks[-1] if sequence.blocks else None
            blocks = self.blocks.allocate(most if plenty else least, after=last)
        if blocks is None:
            self.blocks.free(sequence.take_blocks())
            return 0
        self.num_cached_tokens += sequence.num_computed
        if sequence.first_scheduled_at is None:
            sequence.num_cached = sequence.num_computed
        sequence.add_blocks(blocks)
        return size

    def _share_prefix(self, sequence: Sequence) -> None:
        if not self._prefix_cache:
            return
        keys = sequence.keys.up_to(sequence.num_cacheable, sequence.token_ids)
        found = self.blocks.lookup(keys)
        self.blocks.share(found)
        sequence.add_blocks(found)
        sequence.num_computed = len(found) * sequence.block_size
        sequence.num_indexed = len(found)

    def index_blocks(self, sequence: Sequence) -> None:
        """Offer the full, computed blocks of a sequence whose logits were finite for sharing."""
        if not self._prefix_cache:
            return
        keys = sequence.keys.up_to(sequence.num_computed, sequence.token_ids)
        for index in range(sequence.num_indexed, len(keys)):
            self.blocks.index(sequence.blocks[index], keys[index])
        sequence.num_indexed = len(keys)

    def _grow(self, sequence: Sequence, size: int, chunks: list[Chunk]) -> bool:
        """Blocks for `size` more positions, preempting the latest admitted where needed."""
        missing = sequence.num_blocks_missing(sequence.num_computed + size)
        while True:
            last = sequence.blocks[-1] if sequence.blocks else None
            blocks = self.blocks.allocate(missing, after=last)
            if blocks is not None:
                sequence.add_blocks(blocks)
                return True
            victim = self._victim(chunks)
            self._preempt(victim)
            if victim is sequence:
                return False

    def _victim(self, chunks: Iterable[Chunk]) -> Sequence:
        """The latest admitted sequence that is not already part of this step."""
        planned = {chunk.sequence.id for chunk in chunks}
        return next(s for s in reversed(self.running.values()) if s.id not in planned)

    def _preempt(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.take_blocks())
        del self.running[sequence.id]
        sequence.state = SequenceState.WAITING
        self.waiting[sequence.id] = sequence
        self.waiting.move_to_end(sequence.id, last=False)
        self.num_preemptions += 1

    def check_integrity(self) -> None:
        """Raise AssertionError if blocks, states and queues disagree."""
        held = Counter(block for s in self.running.values() for block in s.blocks)
        self.blocks.check_integrity(held)
        assert all(s.state is SequenceState.WAITING and not s.blocks for s in self.waiting.values())
        assert all(s.state is SequenceState.RUNNING for s in self.running.values())
