"""Scheduling and blocks, without a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    FinishReason,
    Stopping,
)
from polygraft.server.engine.scheduler import Scheduler, SchedulerLimits
from polygraft.server.engine.sequence import Sequence, SequenceState

BLOCK = 4


class Adapters:
    def __init__(self) -> None:
        self.ready: set[str] = {"warm"}
        self.failures: dict[str, Exception] = {}

    def is_ready(self, *digests: str) -> bool:
        return self.ready.issuperset(digests)

    def hold(self, *digests: str) -> bool:
        return self.is_ready(*digests)

    def failure(self, *digests: str) -> Exception | None:
        return next((self.failures[d] for d in digests if d in self.failures), None)


def make(num_blocks: int = 64, **limits: int) -> tuple[Scheduler, Adapters]:
    adapters = Adapters()
    caps = {"max_running": 8, "max_batch_tokens": 32, "max_chunk": 8, **limits}
    scheduler = Scheduler(
        SchedulerLimits(**caps), BlockPool(num_blocks), adapters, prefix_cache=True
    )
    return scheduler, adapters


def sequence(
    name: str, prompt: int, output: int = 4, adapter: str | None = None, virtual: int = 0
) -> Sequence:
    shares = (AdapterShare(adapter),) if adapter else ()
    request = EngineRequest(
        name, tuple(range(prompt)), Stopping(output), adapters=shares, num_virtual=virtual
    )
    return Sequence(request, block_size=BLOCK)


def advance(chunks: list[Chunk]) -> None:
    """What a step does to sequences, without a model."""
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.num_tokens
        if not chunk.sequence.num_remaining:
            chunk.sequence.token_ids.append(0)


def sizes(chunks: list[Chunk]) -> dict[str, int]:
    return {chunk.sequence.id: chunk.num_tokens for chunk in chunks}


def test_a_long_prompt_is_chunked_and_never_delays_decodes() -> None:
    scheduler, _ = make()
    scheduler.add(sequence("short", 3))
    advance(scheduler.plan(0.0))
    scheduler.add(sequence("long", 30))
    seen = []
    while scheduler.running.get("long") is None or scheduler.running["long"].num_remaining > 1:
        chunks = scheduler.plan(0.0)
        seen.append(sizes(chunks))
        advance(chunks)
    assert [step["short"] for step in seen] == [1] * 4
    assert [step["long"] for step in seen] == [8, 8, 8, 6]


def test_the_token_budget_is_kept() -> None:
    scheduler, _ = make(max_batch_tokens=10, max_chunk=8)
    for i in range(5):
        scheduler.add(sequence(str(i), 7))
    assert sizes(scheduler.plan(0.0)) == {"0": 7, "1": 3}


def test_a_cold_adapter_is_passed_over_and_admitted_when_ready() -> None:
    scheduler, adapters = make()
    scheduler.add(sequence("cold", 3, adapter="cold"))
    scheduler.add(sequence("warm", 3, adapter="warm"))
    assert sizes(scheduler.plan(0.0)) == {"warm": 3}
    adapters.ready.add("cold")
    assert "cold" in sizes(scheduler.plan(0.0))


def composed(name: str) -> Sequence:
    shares = (AdapterShare("cold", 0.5), AdapterShare("warm"))
    request = EngineRequest(name, (1, 2), Stopping(4), adapters=shares)
    return Sequence(request, block_size=BLOCK)


def test_a_composition_waits_for_all_its_adapters_and_fails_with_any() -> None:
    scheduler, adapters = make()
    scheduler.add(composed("fails"))
    assert scheduler.plan(0.0) == []
    adapters.failures["cold"] = RuntimeError("unreadable")
    assert [ended.error for ended in scheduler.sweep(0.0)] == [adapters.failures["cold"]]
    adapters.failures.clear()
    scheduler.add(composed("runs"))
    adapters.ready.add("cold")
    assert sizes(scheduler.plan(0.0)) == {"runs": 2}


def test_the_latest_admitted_is_preempted_and_goes_first_again() -> None:
    scheduler, _ = make(num_blocks=4, max_chunk=32)
    for name in ("old", "young"):
        scheduler.add(sequence(name, 7, output=12))
    while not scheduler.num_preemptions:
        advance(scheduler.plan(0.0))
        scheduler.check_integrity()
    assert list(scheduler.running) == ["old"]
    young = scheduler.waiting["young"]
    assert young.state is SequenceState.WAITING
    assert young.num_computed == 0
    assert young.num_output >= 1, "sampled tokens are kept"


def test_an_aborted_and_an_expired_sequence_leave_at_the_next_sweep() -> None:
    scheduler, _ = make()
    running = sequence("running", 3)
    scheduler.add(running)
    scheduler.plan(0.0)
    late = Sequence(EngineRequest("late", (1,), Stopping(4, time_limit=1.0)), block_size=BLOCK)
    scheduler.add(late)
    scheduler.abort("running")
    scheduler.abort("unknown")
    ended = scheduler.sweep(now=late.submitted_at + 2.0)
    assert {s.id: s.finish_reason for s in ended} == {
        "running": FinishReason.CANCELLED,
        "late": FinishReason.TIME_LIMIT,
    }
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    scheduler.check_integrity()


def test_blocks_of_one_sequence_are_adjacent_while_there_is_room() -> None:
    scheduler, _ = make(num_blocks=64, max_chunk=32)
    for i in range(4):
        scheduler.add(sequence(str(i), 9, output=11))
    for _ in range(10):
        advance(scheduler.plan(0.0))
    for s in scheduler.running.values():
        assert s.first_cell(s.num_computed) is not None


def test_freeing_a_block_twice_is_an_error() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(KeyError):
        pool.free(blocks)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_traffic_always_ends_and_leaves_every_block_free(seed: int) -> None:
    rng = random.Random(seed)  # thousands of choices: too many to draw one by one
    scheduler, adapters = make(
        num_blocks=rng.randint(16, 40),
        max_batch_tokens=rng.randint(1, 40),
        max_chunk=rng.randint(1, 16),
        max_running=rng.randint(1, 6),
    )
    total = rng.randint(1, 12)
    for i in range(total):
        prompt, output = rng.randint(1, 30), rng.randint(1, 20)
        adapter = rng.choice([None, "warm", "cold"])
        scheduler.add(sequence(str(i), prompt, output, adapter, rng.randint(0, 5)))
    finished = 0
    for step in range(3000):
        if rng.randint(0, 30) == 0 or step == 50:
            adapters.ready.add("cold")
        if rng.randint(0, 40) == 0:
            scheduler.abort(str(rng.randint(0, total)))
        finished += len(scheduler.sweep(0.0))
        chunks = scheduler.plan(0.0)
        assert sum(c.num_tokens for c in chunks) <= scheduler.limits.max_batch_tokens
        assert len({c.sequence.id for c in chunks}) == len(chunks)
        for chunk in chunks:
            end = chunk.sequence.num_computed + chunk.num_tokens
            assert len(chunk.sequence.cells(0, end)) == end, "a token without a cell"
        advance(chunks)
        for s in [c.sequence for c in chunks]:
            if s.num_output:
                scheduler.index_blocks(s)
            if s.num_output >= s.request.stopping.max_output_tokens:
                scheduler.finish(s)
                finished += 1
        scheduler.check_integrity()
        if finished == total:
            break
    assert finished == total
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
