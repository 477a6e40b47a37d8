"""What one request does, another never notices: poisoned adapters, cancellations, reused blocks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from engine_support.harness import Harness
from engine_support.solo import Request, Solo

from polygraft.adapters.errors import NonFinite
from polygraft.server.engine.messages import FinishReason

SoloFor = Callable[[str], Solo]


def run_all(harness: Harness, requests: list[Request], name: str) -> None:
    for i, request in enumerate(requests):
        request.submit_to(harness, f"{name}{i}")
        if i % 3 == 0:
            harness.run_step()
    harness.run()
    harness.assert_clean()


def assert_exact(harness: Harness, requests: list[Request], name: str) -> None:
    for i, request in enumerate(requests):
        request.assert_equal(harness.answers[f"{name}{i}"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("poisoned", ["lora4", "patterns16", "soft", "prefix"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_poisoned_adapter_ends_its_own_requests_and_no_others(
    architecture: str, poisoned: str, prefix_cache: bool, value: float, solo: SoloFor
) -> None:
    alone = solo(architecture)
    harness = alone.harness(
        poisoned=poisoned,
        value=value,
        prefix_cache=prefix_cache,
        max_chunk=7 if prefix_cache else 64,
    )
    bad = [request for request in alone.requests if request.uses(poisoned)]
    good = [request for request in alone.requests if not request.uses(poisoned)]
    mixed = [request for pair in zip(good, bad * len(good), strict=False) for request in pair]
    run_all(harness, mixed, "mixed")
    for i, request in enumerate(mixed):
        answer = harness.answers[f"mixed{i}"]
        if request.uses(poisoned):
            assert isinstance(answer.error, NonFinite)
            assert not answer.token_ids
        else:
            request.assert_equal(answer)
    run_all(harness, good, "next")  # in the blocks that the others had
    assert_exact(harness, good, "next")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_oss"])
def test_blocks_of_a_cancelled_poisoned_prompt_are_clean_for_the_next(
    architecture: str, solo: SoloFor
) -> None:
    """Nobody saw its logits, so nobody knows that its keys are NaN."""
    alone = solo(architecture)
    harness = alone.harness(poisoned="lora4", max_chunk=7, kv_bytes=alone.block_bytes * 12)
    bad = [request for request in alone.requests if request.kind == "lora4"]
    good = [request for request in alone.requests if not request.uses("lora4")]
    for round_ in range(4):
        for i, request in enumerate(bad):
            request.submit_to(harness, f"bad{round_}.{i}")
        harness.run_step()
        for i in range(len(bad)):
            harness.engine.abort(f"bad{round_}.{i}")
        cache = harness.engine._runner.cache
        assert any(bool(tensor.isnan().any()) for tensor in cache.keys), "nothing was poisoned"
        run_all(harness, good[round_::2], f"good{round_}.")
        assert_exact(harness, good[round_::2], f"good{round_}.")


ROOMS: dict[str, dict[str, int]] = {
    "wide": {"max_chunk": 16},
    "few blocks": {"max_chunk": 7, "blocks": 8},
    "narrow steps": {"max_chunk": 3, "max_running": 4, "max_batch_tokens": 8, "blocks": 6},
    "blocks of one": {"max_chunk": 64, "block_size": 1, "blocks": 20},
    "odd blocks": {"max_chunk": 64, "block_size": 5, "blocks": 20},
    "short windows": {"max_chunk": 7, "blocks": 20},
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_thousand_cancellations_at_random_moments_disturb_nobody(
    room: str, solo: SoloFor
) -> None:
    """Whoever was not cancelled has PEFT's own answer, whoever was has the beginning of it."""
    alone = solo("mistral" if room == "short windows" else "llama")
    settings = dict(ROOMS[room])
    if "blocks" in settings:
        settings["kv_bytes"] = settings.pop("blocks") * alone.block_bytes
    harness = alone.harness(**settings)
    rng = random.Random(room)
    live: dict[str, Request] = {}
    cancelled = finished = count = 0
    while cancelled < 200 or live:
        for _ in range(rng.randrange(3) if cancelled < 200 else 0):
            live[str(count)] = rng.choice(alone.requests)
            live[str(count)].submit_to(harness, str(count))
            count += 1
        for _ in range(rng.randrange(3)):
            harness.engine.abort(rng.choice([*live, "unknown"]))
        harness.run_step()
        for name in [name for name in live if harness.answers[name].is_done]:
            request, answer = live.pop(name), harness.answers.pop(name)
            if answer.finish_reason is FinishReason.CANCELLED:
                assert answer.token_ids == request.token_ids[: len(answer.token_ids)]
                cancelled += 1
            else:
                request.assert_equal(answer)
                finished += 1
    harness.assert_clean()
    assert finished > 10
