"""What is measured: seeded requests for many adapters. Knows no model and no system."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

BASE = ""  # the adapter of a request that is for the base alone


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One prompt for one adapter, or for the base."""

    prompt_token_ids: tuple[int, ...]
    adapter: str
    max_output_tokens: int  # exactly so many: end-of-sequence tokens are ignored


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order; `concurrency` clients each send the next one when theirs has finished."""

    requests: tuple[WorkloadRequest, ...]
    concurrency: int

    @property
    def num_output_tokens(self) -> int:
        """Tokens that every system must produce."""
        return sum(request.max_output_tokens for request in self.requests)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the way to a worker process."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """The inverse of `to_json`."""
        requests = (
            WorkloadRequest(
                tuple(item["prompt_token_ids"]), item["adapter"], item["max_output_tokens"]
            )
            for item in data["requests"]
        )
        return cls(tuple(requests), data["concurrency"])


@dataclass(frozen=True, slots=True)
class Shape:
    """The distribution that requests are drawn from."""

    vocab_size: int
    min_prompt_tokens: int = 32
    max_prompt_tokens: int = 128
    output_tokens: int = 64
    zipf_exponent: float = 1.0  # adapter k of K is asked for in proportion to 1 / k**exponent


def make_workload(
    shape: Shape, adapters: list[str], *, num_requests: int, concurrency: int, seed: int
) -> Workload:
    """Draw requests; the same arguments give the same requests on every machine."""
    draw = random.Random(f"{seed} {len(adapters)} {num_requests} {concurrency}")
    popularity = list(accumulate(1 / k**shape.zipf_exponent for k in range(1, len(adapters) + 1)))

    def requests() -> Iterator[WorkloadRequest]:
        for _ in range(num_requests):
            length = draw.randint(shape.min_prompt_tokens, shape.max_prompt_tokens)
            prompt = tuple(draw.randrange(shape.vocab_size) for _ in range(length))
            (adapter,) = draw.choices(adapters, cum_weights=popularity)
            yield WorkloadRequest(prompt, adapter, shape.output_tokens)

    return Workload(tuple(requests()), concurrency)


@dataclass(slots=True)
class RequestTrace:
    """What a system did for one request, by the clock of its own process."""

    submitted: float  # seconds, time.perf_counter()
    token_times: list[float] = field(default_factory=list)  # when each output token arrived
    token_ids: list[int] = field(default_factory=list)

    def record(self, token_ids: list[int], now: float) -> None:
        """Note tokens that arrived together."""
        self.token_ids.extend(token_ids)
        self.token_times.extend([now] * len(token_ids))

    @property
    def time_to_first_token(self) -> float:
        """Seconds from submission."""
        return self.token_times[0] - self.submitted

    @property
    def inter_token_latencies(self) -> list[float]:
        """Seconds between tokens that follow each other."""
        return [b - a for a, b in zip(self.token_times, self.token_times[1:], strict=False)]
