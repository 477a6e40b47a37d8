"""How many requests and prompt tokens wait, whose they are, and when there are too many.

A namespace that waits alone may fill the queue. While others wait too it has a share of it, and
those within their share find room beyond the cap (an eighth of it), so that nobody who filled the
queue alone keeps the others out.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from polygraft.adapters.errors import DeadlineExpired, Overloaded
from polygraft.server.engine.drain_rate import DrainRate
from polygraft.server.engine.messages import EngineRequest, FairShare

_BEYOND = 1 / 8  # of the cap, for those within their share
_CERTAINTY = 0.5  # a deadline is refused if even half of the estimated wait is too long


@dataclass(frozen=True, slots=True)
class QueueCaps:
    """What may wait at most. `namespace_share`: of both, for each while several wait."""

    max_requests: int
    max_tokens: int
    namespace_share: float = 0.5


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one key holds in the queue."""

    account: tuple[int, FairShare]  # priority and share
    num_requests: int
    num_tokens: int

    @property
    def namespace(self) -> str:
        return self.account[1].namespace


class _Amount:
    """Something that is capped, by namespace."""

    def __init__(self, item: str, noun: str, cap: int, share: float) -> None:
        self.item, self.noun, self.cap = item, noun, cap
        self._most_of_share = max(1, int(cap * share))
        self._most_in_all = cap + math.ceil(cap * _BEYOND)
        self.held: Counter[str] = Counter()
        self.total = 0

    def add(self, namespace: str, change: int) -> None:
        self.total += change
        self.held[namespace] += change
        if not self.held[namespace]:
            del self.held[namespace]

    def limit_passed(self, namespace: str, new: int) -> int | None:
        """The limit that `new` more of a namespace would pass, if one."""
        mine = self.held[namespace]
        if not mine and (not self.total or self.total + new <= self._most_in_all):
            return None  # the first is let in: its length was checked against the context
        if self.total == mine:
            return self.cap if mine + new > self.cap else None
        if mine + new > self._most_of_share:
            return self._most_of_share
        return self._most_in_all if self.total + new > self._most_in_all else None


class WaitingCount:
    """Counts what waits, from the reservation or `enter` to the first step. Thread-safe."""

    def __init__(self, caps: QueueCaps, rate: DrainRate) -> None:
        share = caps.namespace_share
        self._requests = _Amount("max_queued_requests", "requests", caps.max_requests, share)
        self._tokens = _Amount("max_queued_tokens", "prompt tokens", caps.max_tokens, share)
        self._rate = rate
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._ahead: Counter[tuple[int, FairShare]] = Counter()  # prompt tokens by account
        self.num_deadlines_refused = 0

    @property
    def num_requests(self) -> int:
        """Requests that wait for their first step, or have a place reserved."""
        return self._requests.total

    @property
    def num_tokens(self) -> int:
        """Their prompt tokens."""
        return self._tokens.total

    def reserve(self, key: str, share: FairShare, *, num_requests: int, num_tokens: int) -> None:
        """Room for requests whose prompts are not tokenised yet, until `leave(key)`.

        Raises Overloaded.
        """
        with self._lock:
            self._enter(key, _Entry((0, share), num_requests, num_tokens))

    def enter(self, request: EngineRequest, now: float) -> None:
        """Count a request. Raises Overloaded when it is one too many, DeadlineExpired when its
        deadline (like `now` on the monotonic clock) has passed or is sure to pass before it would
        begin."""
        account = (request.priority, request.share)
        with self._lock:
            if request.deadline is not None:
                self._check_deadline(account, request.deadline - now)
            self._enter(request.request_id, _Entry(account, 1, len(request.prompt_token_ids)))

    def leave(self, key: str) -> None:
        """It was scheduled for the first time, or ended while waiting. Idempotent."""
        if key not in self._entries:  # asked for every row of every step: without the lock
            return
        with self._lock:
            self._leave(key)

    def num_tokens_of(self, key: str) -> int:
        """Prompt tokens that wait under a key; 0 if it does not wait (any more)."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.num_tokens

    def check_integrity(self) -> None:
        """Raise AssertionError unless the counts are those of what waits."""
        with self._lock:
            entries = list(self._entries.values())
            for amount, number in (
                (self._requests, sum(entry.num_requests for entry in entries)),
                (self._tokens, sum(entry.num_tokens for entry in entries)),
            ):
                assert amount.total == number == sum(amount.held.values()), amount.item
            assert sum(self._ahead.values()) == self._tokens.total

    def _leave(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._count(entry, -1)

    def _enter(self, key: str, entry: _Entry) -> None:
        self._leave(key)  # a reservation under the request's own id
        self._check_caps(entry)
        self._entries[key] = entry
        self._count(entry, 1)

    def _count(self, entry: _Entry, sign: int) -> None:
        self._requests.add(entry.namespace, sign * entry.num_requests)
        self._tokens.add(entry.namespace, sign * entry.num_tokens)
        self._ahead[entry.account] += sign * entry.num_tokens
        if not self._ahead[entry.account]:
            del self._ahead[entry.account]

    def _check_caps(self, entry: _Entry) -> None:
        checks: tuple[tuple[_Amount, int, Callable[[float], float | None]], ...] = (
            (self._requests, entry.num_requests, self._rate.seconds_for_requests),
            (self._tokens, entry.num_tokens, self._rate.seconds_for_tokens),
        )
        for amount, new, seconds_for in checks:
            limit = amount.limit_passed(entry.namespace, new)
            if limit is not None:
                mine = amount.held[entry.namespace]
                whose = "" if mine == amount.total else f", {mine} of them of this namespace"
                raise Overloaded(
                    f"{amount.total} {amount.noun} are waiting{whose}; {new} more would pass the "
                    f"limit of {limit}.",
                    item=amount.item,
                    found=mine,
                    allowed=limit,
                    hint="Retry later.",
                    retry_after=seconds_for(amount.total),
                )

    def _check_deadline(self, account: tuple[int, FairShare], left: float) -> None:
        wait = self._rate.seconds_for_tokens(self._tokens_ahead(account)) or 0.0
        if left > _CERTAINTY * wait:
            return
        self.num_deadlines_refused += 1
        raise DeadlineExpired(
            f"{max(left, 0.0):.3g} s are left until the deadline, and the queue takes about "
            f"{wait:.3g} s.",
            item="deadline",
            found=round(left, 3),
            hint="Allow more time, or retry later.",
        )

    def _tokens_ahead(self, account: tuple[int, FairShare]) -> float:
        """Waiting prompt tokens that are served before a new request of an account: its own, as
        many of each other account of its class, and those of the classes above."""
        priority, mine = account[0], self._ahead[account]
        return sum(
            tokens if other[0] > priority else min(tokens, mine)
            for other, tokens in self._ahead.items()
            if other[0] >= priority
        )
