"""What is refused at the door: requests that can never run."""

from __future__ import annotations

from collections.abc import Sequence

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.messages import EngineRequest


class Admission:
    """Checks requests against what the base and the cache can hold."""

    def __init__(self, *, vocab_size: int, context_length: int) -> None:
        self._vocab_size = vocab_size
        self._context_length = context_length

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
        self._check_ids("wanted_logprobs", [i for ids in request.wanted_logprobs for i in ids])
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
