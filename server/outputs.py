"""The way of tokens from the engine's thread to the event loop: one hand-over per step.

The engine calls `publish` once per step with the outputs of all rows; each request has a queue of
its own on the loop. The engine never waits for a reader: a queue is bounded, and a reader that
falls behind it is cut off.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from polygraft.adapters.errors import PolygraftError
from polygraft.server.engine.messages import SequenceOutput

MAX_PENDING_TOKENS = 4096


class SlowReader(PolygraftError):
    """The client reads its stream so slowly that the answer was ended."""

    reason = "SLOW_READER"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One output and when the engine published it, on the monotonic clock in seconds."""

    output: SequenceOutput
    published_at: float


class OutputQueue:
    """Outputs of one or more sequences that nobody has taken yet. Belongs to the event loop."""

    def __init__(self, max_pending_tokens: int) -> None:
        self._max_pending_tokens = max_pending_tokens
        self._pending: list[Delivery] = []
        self._num_tokens = 0
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def put(self, delivery: Delivery) -> None:
        """Add an output; too many unread tokens end the queue with SlowReader."""
        self._num_tokens += len(delivery.output.token_ids)
        if self._num_tokens > self._max_pending_tokens:
            self.fail(
                SlowReader(
                    f"{self._num_tokens} tokens of this answer wait to be read, "
                    f"{self._max_pending_tokens} are allowed.",
                    found=self._num_tokens,
                    allowed=self._max_pending_tokens,
                    hint="Read the stream faster, or call Generate.",
                )
            )
            return
        self._pending.append(delivery)
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """Drop what is pending; `take` raises `error` from now on."""
        self._pending.clear()
        self._error = self._error or error
        self._arrived.set()

    async def take(self) -> list[Delivery]:
        """Everything pending, at least one output; waits for it. Raises what `fail` was given."""
        await self._arrived.wait()
        if self._error is not None:
            raise self._error
        self._arrived.clear()
        taken, self._pending = self._pending, []
        self._num_tokens = 0
        return taken


class OutputRouter:
    """Hands the engine's outputs to the queues of their sequences."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, max_pending_tokens: int = MAX_PENDING_TOKENS
    ) -> None:
        self._loop = loop
        self._max_pending_tokens = max_pending_tokens
        self._queues: dict[str, OutputQueue] = {}

    def __len__(self) -> int:
        """The number of sequences with an open queue."""
        return len(self._queues)

    def publish(self, outputs: list[SequenceOutput]) -> None:
        """Called from the engine's thread, once per step."""
        # Why: the loop is closed only when a process ends in the middle of a step; nobody reads.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, outputs, time.monotonic())

    def open(self, *request_ids: str) -> OutputQueue:
        """One queue for the outputs of all these; open it before they are submitted."""
        queue = OutputQueue(self._max_pending_tokens)
        self._queues.update(dict.fromkeys(request_ids, queue))
        return queue

    def close(self, request_id: str) -> None:
        """Forget a sequence; outputs that still come for it are dropped."""
        self._queues.pop(request_id, None)

    def fail_all(self, error: Exception) -> None:
        """End every open queue with an error."""
        for queue in self._queues.values():
            queue.fail(error)

    def _deliver(self, outputs: list[SequenceOutput], published_at: float) -> None:
        for output in outputs:
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put(Delivery(output, published_at))
