"""When a client tries again by itself: only what the server says may succeed later."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from polygraft.adapters.errors import Overloaded, PolygraftError, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all; waits grow from `first_wait` to `longest_wait` seconds, with jitter.

    An overloaded server names the wait itself. A stream is never tried again once it has begun.
    """

    attempts: int = 4
    first_wait: float = 0.1
    longest_wait: float = 2.0

    def patient(self) -> RetryPolicy:
        """For what has got somewhere already: it waits out a restart of the server, for about a
        minute. A policy of one attempt stays one."""
        if self.attempts == 1:
            return self
        return replace(self, attempts=4 * self.attempts, longest_wait=2.5 * self.longest_wait)

    def wait_after(self, attempt: int, error: PolygraftError) -> float | None:
        """Seconds to wait after failed attempt 1, 2, ...; None: do not try again."""
        if attempt >= self.attempts:
            return None
        if isinstance(error, Overloaded):
            return error.retry_after if "retry_after" in error.metadata else None
        if isinstance(error, Unavailable):
            wait = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
            return wait * random.uniform(0.8, 1.2)
        return None


NO_RETRY = RetryPolicy(attempts=1)
