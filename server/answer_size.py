"""How large the message of an answer can get: log-probabilities may make it too large to send."""

from __future__ import annotations

from collections.abc import Sequence

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.messages import EngineRequest

_ENTRY_BYTES = 20  # of one token: id, log-probability and rank, each with its tag
_TOP_BYTES = 14  # of one of the likeliest tokens beside it


def check_answer_size(jobs: Sequence[EngineRequest], *, is_stream: bool, max_bytes: int) -> None:
    """Raises InvalidRequest for what would be computed in vain.

    `jobs` are the choices of one request; a stream sends the prompt's log-probabilities in one
    message, and those of the output as they come.
    """
    prompt = sum(_size(job.prompt_logprobs, len(job.prompt_token_ids)) for job in jobs)
    output = sum(_size(job.top_logprobs, job.stopping.max_output_tokens) for job in jobs)
    size = prompt if is_stream else prompt + output
    if size > max_bytes:
        hint = "Ask for fewer alternatives, or for none."
        raise InvalidRequest(
            f"log-probabilities of {size} bytes would not fit one message of {max_bytes}.",
            reason="LIMIT_EXCEEDED",
            item="output.prompt_logprobs" if prompt > output else "output.top_logprobs",
            found=size,
            allowed=max_bytes,
            hint=hint if is_stream else f"{hint} A stream sends those of the output as they come.",
        )


def _size(num_top: int | None, num_tokens: int) -> int:
    return 0 if num_top is None else num_tokens * (_ENTRY_BYTES + _TOP_BYTES * num_top)
