"""One generation in the engine. Changed by the engine thread only."""

from __future__ import annotations

import time
from enum import Enum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from polygraft.server.engine.messages import EngineRequest, FinishReason, TokenLogprob
from polygraft.server.engine.prefix_cache import BlockKeys
from polygraft.server.engine.sampling.chooser import TokenChooser
from polygraft.server.engine.speculation import Speculator


class SequenceState(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Tokens, KV blocks and limits of one request.

    Positions count virtual tokens first, then prompt and output tokens. `num_computed` positions
    have their keys and values in the cache; the rest is still to be computed. A ready-made prefix
    counts as computed from admission on; its positions from `num_written` on are still to be
    written into the cache before the next step.
    """

    def __init__(self, request: EngineRequest, *, block_size: int) -> None:
        self.request = request
        self.id = request.request_id
        self.num_virtual = request.num_virtual
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.num_prompt = len(self.token_ids)
        self.num_computed = 0
        self.num_written = request.num_prefix
        self.num_cached = 0  # positions read from the prefix cache when first admitted
        self.num_shared = 0  # positions read from the prefix cache when last admitted
        self.num_indexed = 0  # blocks that were offered to the prefix cache
        self.keys = BlockKeys(
            adapters=request.adapters,
            num_virtual=request.num_virtual,
            salt=request.salt,
            block_size=block_size,
        )
        self.blocks: list[int] = []  # by position; dropped ones stand for one that is held
        self.num_dropped = 0  # of the blocks: no layer reads them any more
        self.state = SequenceState.WAITING
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.is_aborted = False
        self.digests = request.digests
        self.holds_adapters = False  # from its first admission on: they stay on the device
        self.passed_over_at: float | None = None  # first in line, but its adapters had no room
        self.num_charged_prompt = 0  # virtual and prompt tokens its account was charged for
        self.num_charged_output = 0
        self.submitted_at = time.monotonic()
        self.first_scheduled_at: float | None = None
        self.scores: list[TokenLogprob] = []  # of prompt tokens, from the first that is scored
        self.chooser = TokenChooser(request)
        self.speculator = Speculator(self.token_ids)
        self.block_size = block_size
        self.block_table: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)  # `blocks` again
        self._cells: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._is_contiguous = True

    @property
    def num_positions(self) -> int:
        """Virtual, prompt and output tokens so far."""
        return self.num_virtual + len(self.token_ids)

    @property
    def num_remaining(self) -> int:
        """Positions whose keys and values are not computed yet."""
        return self.num_positions - self.num_computed

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def is_decode(self) -> bool:
        """Whether all but the newest token is computed: a step gives it a token at once."""
        return self.num_remaining == 1

    @property
    def is_prompt_computed(self) -> bool:
        """Whether its whole prompt is in the cache, now or at some time before."""
        return self.num_output > 0 or self.num_computed >= self.num_virtual + self.num_prompt

    @property
    def max_positions(self) -> int:
        """Positions it can reach: virtual, prompt and all output but the last token."""
        output = self.request.stopping.max_output_tokens
        return self.num_virtual + self.num_prompt + max(output - 1, 0)

    @property
    def num_cacheable(self) -> int:
        """Positions that may come from the cache: one at least is computed, for its logits."""
        if self.next_scored is not None:
            return self.num_virtual + self.next_scored - 1
        return self.num_positions - 1

    @property
    def next_scored(self) -> int | None:
        """Index of the first prompt token that is to be scored and was not yet; None: no more."""
        first = self.request.first_scored
        if first is None or first + len(self.scores) >= self.num_prompt:
            return None
        return first + len(self.scores)

    def append(self, token_id: int) -> None:
        """Take an output token."""
        self.token_ids.append(token_id)
        self.chooser.take(token_id)

    @property
    def expires_at(self) -> float | None:
        """Monotonic time at which the request's own time limit passes."""
        limit = self.request.stopping.time_limit
        return None if limit is None else self.submitted_at + limit

    def cells(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """KV cells of the positions [start, end)."""
        return self._cells[start:end]

    def first_cell(self, length: int) -> int | None:
        """The first cell if positions [0, length) lie in adjacent cells, else None."""
        return int(self._cells[0]) if self._is_contiguous and length else None

    def num_blocks_missing(self, num_positions: int) -> int:
        """Blocks to add before `num_positions` positions fit."""
        return max(0, -(-num_positions // self.block_size) - len(self.blocks))

    def add_blocks(self, blocks: list[int]) -> None:
        """Take ownership of more blocks."""
        if not blocks:
            return
        chain = [*self.blocks[-1:], *blocks]
        adjacent = all(b == a + 1 for a, b in pairwise(chain))
        self._is_contiguous = self._is_contiguous and adjacent
        self.blocks += blocks
        self.block_table = np.asarray(self.blocks, dtype=np.int32)
        starts = np.asarray(blocks, dtype=np.int64) * self.block_size
        new = (starts[:, None] + np.arange(self.block_size, dtype=np.int64)).reshape(-1)
        self._cells = np.concatenate([self._cells, new])

    @property
    def held_blocks(self) -> list[int]:
        """The blocks it has a hold on, in order of positions."""
        return self.blocks[self.num_dropped :]

    def drop_blocks(self, count: int) -> list[int]:
        """Give up the first blocks, `count` in all, but never the last; returns those given up.

        Their places in the table are taken by the first block that is left, so that whoever reads
        behind the window by mistake or under a mask reads its own, finite cells.
        """
        count = min(count, len(self.blocks) - 1)
        dropped = self.blocks[self.num_dropped : count]
        if dropped:
            self.num_dropped = count
            self.blocks[:count] = [self.blocks[count]] * count
            self.block_table = np.asarray(self.blocks, dtype=np.int32)
            size = self.block_size
            self._cells[: count * size] = np.tile(self._cells[count * size :][:size], count)
            self._is_contiguous = False
        return dropped

    def skip_shared(self, blocks: list[int]) -> None:
        """Start behind shared blocks, and behind the prefix if there is one."""
        self.add_blocks(blocks)
        shared = len(blocks) * self.block_size
        self.num_shared = shared
        self.num_indexed = len(blocks)
        self.num_written = min(shared, self.request.num_prefix)
        self.num_computed = max(shared, self.request.num_prefix)

    def take_blocks(self) -> list[int]:
        """Give up all blocks; every position must be computed again."""
        blocks, self.blocks, self.num_dropped = self.held_blocks, [], 0
        self.block_table = np.empty(0, dtype=np.int32)
        self._cells = np.empty(0, dtype=np.int64)
        self._is_contiguous = True
        self.num_computed = self.num_indexed = 0
        return blocks
