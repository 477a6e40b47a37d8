"""A mixed, joining and leaving batch equals PEFT's own generation of each request alone.

In every architecture, whatever the chunk size, with and without the prefix cache, and when
sequences lose their blocks in prefill and decode and are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from engine_support.architectures import SERVED
from engine_support.mixed import assert_equals_alone
from engine_support.peft_adapters import NUM_VIRTUAL
from engine_support.solo import KINDS, Solo

CHUNKS = (1, 7, 64)
EVERY = list(product(CHUNKS, (True, False), (True, False)))  # chunk, prefix cache, preemption
THOROUGH = ("llama", "gpt2", "gpt_oss", "deepseek_v3")  # get every combination
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
    assert_equals_alone(alone, harness, preempts=preempts)
    assert bool(harness.engine.stats().cached_tokens) == prefix_cache


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
