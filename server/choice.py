"""One choice of an answer while it is made: tokens from the engine in, pieces of text out.

Belongs to the event loop. Knows nothing of the other choices.
"""

from __future__ import annotations

from polygraft.adapters.errors import Unavailable
from polygraft.server.engine.messages import EngineRequest, FinishReason, SequenceOutput
from polygraft.server.requests import Ending, Piece
from polygraft.server.text import IncrementalDetokenizer, StopSequenceFilter

_ENDINGS = {
    FinishReason.STOP: Ending.STOP,
    FinishReason.LENGTH: Ending.LENGTH,
    FinishReason.TIME_LIMIT: Ending.TIME_LIMIT,
}


class ChoiceReader:
    """Reads the outputs of one sequence.

    `echo` is the prompt's text, in front of the first piece; the detokenizer has read it then.
    """

    def __init__(
        self,
        index: int,
        job: EngineRequest,
        detokenizer: IncrementalDetokenizer,
        stops: StopSequenceFilter,
        echo: str = "",
    ) -> None:
        self.index = index
        self.job = job
        self.ending: Ending | None = None
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._detokenizer = detokenizer
        self._stops = stops
        self._unshown = echo

    def read(self, output: SequenceOutput) -> Piece:
        """What is new. Raises the error that ended the sequence."""
        if output.error is not None:
            raise output.error
        self.num_cached_tokens = output.num_cached
        text, count = self._show(output)
        self.num_output_tokens += count
        text, self._unshown = self._unshown + text, ""
        return Piece(
            index=self.index,
            text=text,
            token_ids=output.token_ids[:count],
            logprobs=output.logprobs[:count],
            prompt_logprobs=output.prompt_logprobs,
            ending=self.ending,
            output_tokens=self.num_output_tokens,
        )

    def _show(self, output: SequenceOutput) -> tuple[str, int]:
        """The text of one output, and how many of its tokens belong to the choice."""
        text = ""
        for count, token in enumerate(self._visible(output), start=1):
            text += self._filter(self._detokenizer.push((token,)), self.num_output_tokens + count)
            if self._stops.matched is not None:
                self.ending = Ending.STOP
                return text, count
        count = len(output.token_ids)
        if output.is_final:
            text += self._end(output.finish_reason, self.num_output_tokens + count)
        return text, count

    def _visible(self, output: SequenceOutput) -> tuple[int, ...]:
        """Its tokens without one that ended the sequence and says nothing itself."""
        tokens = output.token_ids
        stop_ids = self.job.stopping.stop_token_ids
        if output.finish_reason is FinishReason.STOP and tokens and tokens[-1] in stop_ids:
            return tokens[:-1]
        return tokens

    def _filter(self, text: str, num_tokens: int) -> str:
        """Text before the least length cannot end the choice."""
        if num_tokens < self.job.stopping.min_output_tokens:
            return text
        return self._stops.push(text)

    def _end(self, reason: FinishReason | None, num_tokens: int) -> str:
        """Note why the engine ended the sequence; returns the text held back until now."""
        if reason not in _ENDINGS:
            raise Unavailable("the server ended this answer.", reason="DRAINING")
        text = self._filter(self._detokenizer.flush(), num_tokens) + self._stops.flush()
        self.ending = Ending.STOP if self._stops.matched is not None else _ENDINGS[reason]
        return text
