"""A mixed, joining and leaving batch, held to what PEFT generates for each request alone."""

from __future__ import annotations

from collections import Counter

from engine_support.harness import Harness
from engine_support.solo import Solo

MAX_PREEMPTIONS = 3  # of one request


class Driver:
    """Runs steps; between them, if asked to, every running sequence loses its blocks in turn."""

    def __init__(self, harness: Harness, *, preempts: bool) -> None:
        self.harness = harness
        self.preempts = preempts
        self.preemptions: Counter[str] = Counter()
        self._steps = 0

    def step(self) -> None:
        self.harness.run_step()
        self._steps += 1
        running = [r for r in self.harness.running if self.preemptions[r] < MAX_PREEMPTIONS]
        if self.preempts and running:
            victim = running[self._steps * 5 % len(running)]
            self.harness.preempt(victim)
            self.preemptions[victim] += 1


def assert_equals_alone(alone: Solo, harness: Harness, *, preempts: bool) -> None:
    """Requests of all kinds join while others are in prefill or decode, and come and go; each
    answer is what PEFT gives, and nothing is left behind."""
    driver = Driver(harness, preempts=preempts)
    first, second = alone.requests[::2], alone.requests[1::2]
    for i, request in enumerate((*first, *second)):
        request.submit_to(harness, str(i))
        for _ in range(1 + i % 3):  # requests join while others are in prefill or decode
            driver.step()
        while i == len(first) - 1 and not harness.answers["0"].is_done:
            driver.step()  # so that the second ones find something in the cache
    while harness.engine.ledger()["live_sequences"]:
        driver.step()
    harness.assert_clean()
    for i, request in enumerate((*first, *second)):
        request.assert_equal(harness.answers[str(i)])
    if preempts:
        assert driver.preemptions.total() > 2 * len(alone.requests)
