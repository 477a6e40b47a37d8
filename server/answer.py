"""An answer while it is made: the choices of one request, read from one queue.

Belongs to the event loop. Starting, ending and cleaning up are `server.generation`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from polygraft.server.applied import AppliedAdapters
from polygraft.server.choice import ChoiceReader
from polygraft.server.metrics import GenerationTimer
from polygraft.server.outputs import Delivery, OutputQueue
from polygraft.server.requests import Piece, Usage


class Answer:
    """An asynchronous iterator over the pieces of all choices, as they come.

    The last piece of each choice has `ending` set. `abort` ends a sequence in the engine: a choice
    that a stop sequence has ended does not go on while the others do.
    """

    def __init__(
        self,
        choices: Sequence[ChoiceReader],
        adapters: AppliedAdapters,
        queue: OutputQueue,
        abort: Callable[[str], None],
        start_timer: Callable[[], GenerationTimer],
    ) -> None:
        self.adapters = adapters
        self.choices = tuple(choices)
        self._queue = queue
        self._abort = abort
        self._ready: deque[Piece] = deque()
        self._readers = {choice.job.request_id: (choice, start_timer()) for choice in choices}

    @property
    def seed(self) -> int:
        """The seed used for choice 0, given or drawn."""
        return self.choices[0].job.sampling.seed

    @property
    def is_complete(self) -> bool:
        """Whether every choice has ended and was read."""
        return not self._ready and all(choice.ending is not None for choice in self.choices)

    @property
    def usage(self) -> Usage:
        """What it cost so far: the prompt once, the output of all choices."""
        first = self.choices[0]
        return Usage(
            prompt_tokens=len(first.job.prompt_token_ids),
            virtual_tokens=first.job.num_virtual,
            output_tokens=sum(choice.num_output_tokens for choice in self.choices),
            cached_tokens=first.num_cached_tokens,
        )

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Piece:
        """The next piece, perhaps without text. Raises the error that ended a sequence."""
        while not self._ready:
            if self.is_complete:
                raise StopAsyncIteration
            self._ready.extend(self._read(await self._queue.take()))
        return self._ready.popleft()

    async def collect(self) -> list[Piece]:
        """The whole answer: one piece for each choice."""
        pieces: list[list[Piece]] = [[] for _ in self.choices]
        async for piece in self:
            pieces[piece.index].append(piece)
        return [join(parts) for parts in pieces]

    def _read(self, deliveries: list[Delivery]) -> list[Piece]:
        """One piece for each choice of which something came, in order of arrival."""
        news: dict[str, list[Piece]] = {}
        for delivery in deliveries:
            request_id = delivery.output.request_id
            choice, timer = self._readers[request_id]
            if choice.ending is None:
                piece = choice.read(delivery.output)
                timer.record(delivery)
                news.setdefault(request_id, []).append(piece)
                if choice.ending is not None and not delivery.output.is_final:
                    self._abort(request_id)
        return [join(pieces) for pieces in news.values()]


def join(pieces: Sequence[Piece]) -> Piece:
    """Consecutive pieces of one choice as one."""
    last = pieces[-1]
    if len(pieces) == 1:
        return last
    return Piece(
        index=last.index,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
        prompt_logprobs=tuple(entry for piece in pieces for entry in piece.prompt_logprobs),
        ending=last.ending,
        output_tokens=last.output_tokens,
    )
