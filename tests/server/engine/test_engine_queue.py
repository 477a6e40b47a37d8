"""The queue in front of the engine: caps, the drain rate, deadlines, classes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from engine_support.architectures import VOCAB
from engine_support.harness import random_prompts

from polygraft.adapters.errors import (
    DeadlineExpired,
    Overloaded,
)
from polygraft.server.engine import drain_rate
from polygraft.server.engine.messages import (
    FinishReason,
)

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")


def test_queue_caps_refuse_with_overloaded(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness(max_queued_requests=2, max_queued_tokens=50)
    harness.submit("a", [1] * 40)
    with pytest.raises(Overloaded, match="prompt tokens"):
        harness.submit("b", [1] * 20)
    harness.submit("c", [1] * 5)
    with pytest.raises(Overloaded, match="2 requests"):
        harness.submit("d", [1])
    harness.run_step()  # both are scheduled: the queue is empty again
    harness.submit("e", [1] * 40)
    harness.run()
    harness.assert_clean()


def test_how_fast_the_queue_drains_is_measured_in_steps_with_somebody_waiting(
    tiny_base: TinyBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_rate, "_LEAST_SECONDS", 0.0)
    harness = tiny_base.harness(max_running=1, max_queued_requests=12)
    for i in range(12):
        harness.submit(f"a{i}", [1] * 5, max_output_tokens=2)
    while harness.engine.ledger()["queued_requests"] > 3:
        harness.run_step()
    for i in range(9):
        harness.submit(f"b{i}", [1] * 5, max_output_tokens=2)
    with pytest.raises(Overloaded) as refused:
        harness.submit("c", [1] * 5)
    rate = harness.engine._drain_rate
    assert refused.value.retry_after == rate.seconds_for_requests(12)
    wait = rate.seconds_for_tokens(12 * 5)
    assert wait is not None
    with pytest.raises(DeadlineExpired, match="the queue takes about"):
        harness.submit("d", [1] * 5, deadline=time.monotonic() + 0.4 * wait)
    harness.run()
    harness.assert_clean()


def test_deadlines_reach_the_scheduler_and_the_counts(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness(max_running=1)
    with pytest.raises(DeadlineExpired, match="are left until the deadline"):
        harness.submit("past", [1] * 5, deadline=time.monotonic() - 1)
    harness.submit("first", [1] * 5, adapter="lora4")
    harness.run_step()
    harness.submit("late", [1] * 5, adapter="lora4", deadline=time.monotonic() + 0.05, priority=-1)
    harness.run_step()
    assert harness.engine.stats().queue.in_line == {-1: 1, 0: 0, 1: 0}
    time.sleep(0.06)
    harness.run()
    assert isinstance(harness.answers["late"].error, DeadlineExpired)
    assert harness.answers["late"].token_ids == []
    assert harness.answers["first"].finish_reason is FinishReason.LENGTH
    stats = harness.engine.stats().queue
    assert (stats.deadlines_refused, stats.deadlines_passed) == (1, 1)
    harness.assert_clean()


def test_a_higher_class_displaces_a_lower_one_which_goes_on_unchanged(tiny_base: TinyBase) -> None:
    roomy, full = tiny_base.harness(), tiny_base.harness(max_running=2)
    prompts = random_prompts(6, vocab=VOCAB, seed=12)
    for i, prompt in enumerate(prompts):
        roomy.submit(str(i), prompt, adapter=KINDS[i % len(KINDS)], max_output_tokens=20)
        full.submit(
            str(i),
            prompt,
            adapter=KINDS[i % len(KINDS)],
            max_output_tokens=20,
            priority=-1 if i < 3 else 1,
        )
        full.run_step()
        full.run_step()
    for harness in (roomy, full):
        harness.run()
        harness.assert_clean()
    assert full.engine.stats().queue.displaced > 0
    for i in range(len(prompts)):
        assert full.answers[str(i)].token_ids == roomy.answers[str(i)].token_ids
