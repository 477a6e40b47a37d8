"""What is refused at the door: requests that can never run, and requests over the queue's caps."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from polygraft.adapters.errors import InvalidRequest, Overloaded
from polygraft.server.engine.messages import EngineRequest


class Admission:
    """Checks requests and counts what waits. Thread-safe."""

    def __init__(
        self, *, max_requests: int, max_tokens: int, vocab_size: int, context_length: int
    ) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}  # request id -> prompt tokens, until first scheduled
        self._tokens = 0

    @property
    def num_requests(self) -> int:
        """Requests that wait for their first step."""
        return len(self._waiting)

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return self._tokens

    def check(self, request: EngineRequest) -> None:
        """Raise InvalidRequest for what can never run."""
        ids = request.prompt_token_ids
        if not ids:
            raise InvalidRequest(
                "the prompt has no tokens.",
                reason="EMPTY_PROMPT",
                item="prompt",
                hint="Send at least one token.",
            )
        self._check_ids("token_ids", ids)
        self._check_ids("logit_bias", [token for token, _ in request.sampling.logit_bias])
        output = request.stopping.max_output_tokens
        positions = request.num_virtual + len(ids) + output
        if positions > self._context_length:
            raise InvalidRequest(
                f"{request.num_virtual} virtual, {len(ids)} prompt and {output} output tokens make "
                f"{positions}, more than the context of {self._context_length}.",
                reason="PROMPT_TOO_LONG",
                item="prompt",
                found=positions,
                allowed=self._context_length,
                hint="Shorten the prompt or lower max_output_tokens.",
            )

    def _check_ids(self, item: str, ids: Sequence[int]) -> None:
        ends = (min(ids), max(ids)) if ids else ()
        wrong = [token for token in ends if not 0 <= token < self._vocab_size]
        if wrong:
            raise InvalidRequest(
                f"token id {wrong[0]} is not in the base's vocabulary, [0, {self._vocab_size}).",
                reason="INVALID_TOKEN",
                item=item,
                found=wrong[0],
                allowed=f"[0, {self._vocab_size})",
            )

    def enter(self, request: EngineRequest) -> None:
        """Count a request as waiting. Raises Overloaded when a cap would be passed."""
        count = len(request.prompt_token_ids)
        with self._lock:
            if len(self._waiting) >= self._max_requests:
                raise Overloaded(
                    f"{len(self._waiting)} requests are waiting, the limit of this server.",
                    item="max_queued_requests",
                    allowed=self._max_requests,
                    hint="Retry later.",
                )
            # One request alone is always let in: its length was checked against the context.
            if self._waiting and self._tokens + count > self._max_tokens:
                raise Overloaded(
                    f"{self._tokens} prompt tokens are waiting; {count} more would pass the limit.",
                    item="max_queued_tokens",
                    allowed=self._max_tokens,
                    hint="Retry later.",
                )
            self._waiting[request.request_id] = count
            self._tokens += count

    def leave(self, request_id: str) -> None:
        """The request was scheduled for the first time, or ended while waiting. Idempotent."""
        with self._lock:
            self._tokens -= self._waiting.pop(request_id, 0)
