"""A mixed, joining and leaving batch equals PEFT's own generation of each request alone.

In every architecture, whatever the chunk size, with and without the prefix cache, and when
sequences lose their blocks in prefill and decode and are computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
from engine_support.architectures import SERVED
from engine_support.harness import Harness
from engine_support.peft_adapters import NUM_VIRTUAL
from engine_support.solo import KINDS, Solo

CHUNKS = (1, 7, 64)
EVERY = list(product(CHUNKS, (True, False), (True, False)))  # chunk, prefix cache, preemption
THOROUGH = ("llama", "gpt2", "gpt_oss", "deepseek_v3")  # get every combination
MAX_PREEMPTIONS = 3  # of one request
Combination = tuple[str, int, bool, bool, bool]  # the last: native kernels


def combinations() -> list[Combination]:
    """Three that differ for every architecture, two with the native kernels and one with torch's;
    all of them for a few."""
    chosen: list[Combination] = [(name, *each, True) for name in THOROUGH for each in EVERY]
    chosen += [(name, *each, False) for name in THOROUGH for each in EVERY if each[0] == 7]
    others = [name for name in SERVED if name not in THOROUGH]
    for i, name in enumerate(others):
        chunk, cache, preempts = EVERY[i % len(EVERY)]
        second, third = (CHUNKS[(CHUNKS.index(chunk) + step) % len(CHUNKS)] for step in (1, 2))
        chosen.append((name, chunk, cache, preempts, True))
        chosen.append((name, second, not cache, not preempts, True))
        chosen.append((name, third, not cache, preempts, False))
    return chosen


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


@pytest.mark.parametrize(
    ("architecture", "chunk", "prefix_cache", "preempts", "native"),
    combinations(),
    ids=lambda value: {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value),
)
def test_a_mixed_batch_equals_peft_alone(
    architecture: str,
    chunk: int,
    prefix_cache: bool,
    preempts: bool,
    native: bool,
    solo: Callable[[str], Solo],
) -> None:
    alone = solo(architecture)
    harness = alone.harness(max_chunk=chunk, prefix_cache=prefix_cache, native_kernels=native)
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
    assert bool(harness.engine.stats().cached_tokens) == prefix_cache
    if preempts:
        assert driver.preemptions.total() > 2 * len(alone.requests)


@pytest.mark.parametrize("architecture", SERVED)
def test_the_adapters_of_the_matrix_do_something(
    architecture: str, solo: Callable[[str], Solo]
) -> None:
    """Else a server that ignored them would pass."""
    alone = solo(architecture)
    plain = alone.harness()
    for i, request in enumerate(alone.requests):
        plain.submit(str(i), request.prompt, max_output_tokens=1)
    plain.run()
    effective = {
        request.kind
        for i, request in enumerate(alone.requests)
        if (plain.answers[str(i)].logits[0] - request.logits[0]).abs().max() > 0.003
    }
    assert effective == {request.kind for request in alone.requests} - {None}
    assert len(effective) >= len(KINDS) - 2


@pytest.mark.parametrize("chunk", [1, NUM_VIRTUAL - 3, NUM_VIRTUAL, 64])
def test_a_chunk_may_end_inside_the_virtual_tokens(chunk: int, solo: Callable[[str], Solo]) -> None:
    alone = solo("llama")
    request = next(request for request in alone.requests if request.kind == "soft")
    harness = alone.harness(max_chunk=chunk)
    request.submit_to(harness, "r")
    harness.run()
    request.assert_equal(harness.answers["r"])
