"""How fast the queue gets shorter, as measured while there was one.

From it come the hint when to retry and the refusal of requests whose deadline cannot be met.
"""

from __future__ import annotations

import math

_HALF_LIFE = 30.0  # seconds of steps after which a measurement counts half
_LEAST_REQUESTS = 8.0  # that must have left the queue before anything is said
_LEAST_SECONDS = 0.5


class DrainRate:
    """Requests and prompt tokens that leave the queue per second of steps with somebody waiting.

    Written by the engine thread, read by any: each reader sees numbers of one moment or the next.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._requests = 0.0
        self._tokens = 0.0

    def record(self, seconds: float, *, num_requests: int, num_tokens: int) -> None:
        """One step of that length, which took so much out of a queue that it did not empty."""
        kept = math.exp2(-seconds / _HALF_LIFE)
        self._seconds = self._seconds * kept + seconds
        self._requests = self._requests * kept + num_requests
        self._tokens = self._tokens * kept + num_tokens

    @property
    def is_known(self) -> bool:
        """Whether enough was measured to say anything."""
        return self._requests >= _LEAST_REQUESTS and self._seconds >= _LEAST_SECONDS

    def seconds_for_tokens(self, num_tokens: float) -> float | None:
        """How long so many waiting prompt tokens take to be begun with; None if not known."""
        return num_tokens * self._seconds / self._tokens if self.is_known else None

    def seconds_for_requests(self, num_requests: float) -> float | None:
        """How long so many waiting requests take to be begun with; None if not known."""
        return num_requests * self._seconds / self._requests if self.is_known else None
