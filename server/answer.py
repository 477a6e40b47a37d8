"""One answer while it is made: tokens from the engine in, pieces of text out.

Belongs to the event loop. Starting, ending and cleaning up are `server.generation`'s business.
"""

from __future__ import annotations

from polygraft.adapters.errors import Unavailable
from polygraft.adapters.registry import VersionRecord
from polygraft.server.engine.messages import EngineRequest, FinishReason, SequenceOutput
from polygraft.server.metrics import GenerationTimer
from polygraft.server.outputs import Delivery, OutputQueue
from polygraft.server.requests import Ending, Piece, Usage
from polygraft.server.text import IncrementalDetokenizer, StopSequenceFilter

_ENDINGS = {
    FinishReason.STOP: Ending.STOP,
    FinishReason.LENGTH: Ending.LENGTH,
    FinishReason.TIME_LIMIT: Ending.TIME_LIMIT,
}


class Answer:
    """An asynchronous iterator over the pieces of one answer; the last one has `ending` set."""

    def __init__(
        self,
        job: EngineRequest,
        version: VersionRecord | None,
        queue: OutputQueue,
        detokenizer: IncrementalDetokenizer,
        stops: StopSequenceFilter,
        timer: GenerationTimer,
    ) -> None:
        self.version = version  # None: the base alone answers
        self.ending: Ending | None = None
        self._job = job
        self._queue = queue
        self._detokenizer = detokenizer
        self._stops = stops
        self._timer = timer
        self._num_output_tokens = 0
        self._num_cached_tokens = 0

    @property
    def seed(self) -> int:
        """The seed used, given or drawn."""
        return self._job.sampling.seed

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Piece:
        """The next piece, perhaps without text. Raises the error that ended the sequence."""
        if self.ending is not None:
            raise StopAsyncIteration
        return self._read(await self._queue.take())

    async def collect(self) -> Piece:
        """The whole answer as one piece."""
        pieces = [piece async for piece in self]
        return Piece(
            text="".join(piece.text for piece in pieces),
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            logprobs=tuple(value for piece in pieces for value in piece.logprobs),
            ending=pieces[-1].ending,
            usage=pieces[-1].usage,
        )

    def _read(self, deliveries: list[Delivery]) -> Piece:
        token_ids: list[int] = []
        logprobs: list[float] = []
        text = ""
        for delivery in deliveries:
            output = delivery.output
            if output.error is not None:
                raise output.error
            self._timer.record(delivery)
            self._num_cached_tokens = output.num_cached
            shown, count = self._show(output)
            text += shown
            token_ids += output.token_ids[:count]
            logprobs += [entry.logprob for entry in output.logprobs[:count]]
            if self.ending is not None:
                break
        self._num_output_tokens += len(token_ids)
        usage = self._usage() if self.ending is not None else None
        return Piece(text, tuple(token_ids), tuple(logprobs), self.ending, usage)

    def _show(self, output: SequenceOutput) -> tuple[str, int]:
        """The text of one output, and how many of its tokens belong to the answer."""
        visible = output.token_ids
        if output.finish_reason is FinishReason.STOP and self._is_stop_id(visible[-1]):
            visible = visible[:-1]  # the token that ended the answer says nothing itself
        text = ""
        for count, token in enumerate(visible, start=1):
            text += self._stops.push(self._detokenizer.push((token,)))
            if self._stops.matched is not None:
                self.ending = Ending.STOP
                return text, count
        if output.is_final:
            text += self._end(output.finish_reason)
        return text, len(output.token_ids)

    def _is_stop_id(self, token_id: int) -> bool:
        return token_id in self._job.stopping.stop_token_ids

    def _end(self, reason: FinishReason | None) -> str:
        """Note why the engine ended the sequence; returns the text held back until now."""
        if reason not in _ENDINGS:
            raise Unavailable("the server ended this answer.", reason="DRAINING")
        text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        self.ending = Ending.STOP if self._stops.matched is not None else _ENDINGS[reason]
        return text

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self._job.prompt_token_ids),
            virtual_tokens=self._job.num_virtual,
            output_tokens=self._num_output_tokens,
            cached_tokens=self._num_cached_tokens,
        )
