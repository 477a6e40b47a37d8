"""`live` moves while requests stream: none fails, each is one version's own answer.

The whole minute: POLYGRAFT_SWAP_SECONDS=60 .venv/bin/pytest -s tests/e2e/test_hot_swap.py
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from engine_support.architectures import VOCAB
from engine_support.harness import random_prompts
from engine_support.peft_adapters import generate_alone

if TYPE_CHECKING:
    from conftest import Served

SECONDS = float(os.environ.get("POLYGRAFT_SWAP_SECONDS", "2"))
NUM_STREAMS, NUM_TOKENS, MOVE_SECONDS = 64, 12, 0.05
VERSIONS = ("lora4", "rslora8", "patterns16")
PROMPTS = random_prompts(8, vocab=VOCAB, seed=12, longest=30)


async def test_64_streams_while_live_moves_20_times_a_second(served: Served) -> None:
    client = served.client
    for kind in VERSIONS:
        await served.push("task", served.saved.adapters[kind])
    versions = {v.digest: v.number for v in await client.list_versions("task")}
    assert sorted(versions.values()) == [1, 2, 3]
    end = time.monotonic() + SECONDS
    answers: Counter[tuple[int, int, tuple[int, ...]]] = Counter()  # version, prompt, tokens

    async def ask(prompt: int) -> None:
        token_ids: list[int] = []
        stream = client.stream(
            token_ids=PROMPTS[prompt],
            adapter="task",
            max_output_tokens=NUM_TOKENS,
            ignore_eos=True,
            return_token_ids=True,
        )
        async for piece in stream:
            token_ids += piece.token_ids
        assert stream.generation is not None
        assert stream.generation.version is not None
        answers[versions[stream.generation.version.digest], prompt, tuple(token_ids)] += 1

    async def keep_asking(caller: int) -> None:
        while time.monotonic() < end:
            await ask(caller % len(PROMPTS))

    async def keep_moving() -> int:
        """Every third move splits requests between two versions. The number of moves."""
        first = generation = (await client.alias_history("task"))[0].generation
        begun = time.monotonic()
        while time.monotonic() < end:
            number = generation % len(VERSIONS) + 1
            canary = number % len(VERSIONS) + 1 if generation % 3 == 0 else None
            alias = await client.move_alias(
                "task",
                "live",
                number,
                canary=canary,
                canary_weight=0.5,
                expected_generation=generation,
            )
            assert alias.generation == generation + 1
            generation = alias.generation
            await asyncio.sleep(begun + (generation - first) * MOVE_SECONDS - time.monotonic())
        return generation - first

    *_, moves = await asyncio.gather(*(keep_asking(i) for i in range(NUM_STREAMS)), keep_moving())
    expected = {
        number: [
            tuple(tokens)
            for tokens, _ in generate_alone(
                served.saved.base, served.saved.adapters[kind], PROMPTS, NUM_TOKENS
            )
        ]
        for number, kind in enumerate(VERSIONS, start=1)
    }
    for number, prompt, token_ids in answers:
        assert token_ids == expected[number][prompt], f"version {number}, prompt {prompt}"
    assert {number for number, _, _ in answers} == {1, 2, 3}, "the moves were not seen"
    assert moves >= 3
    residency = served.server.residency
    for digest, number in versions.items():
        assert residency.references(digest) == 0
        await client.unload_adapter(f"task@{number}")
        assert residency.tier(digest).value == "store"
    print(f"{moves} moves, {answers.total()} answers in {SECONDS:g} s, all exact")


async def test_a_pinned_number_and_a_digest_do_not_follow_the_alias(served: Served) -> None:
    client = served.client
    await served.push("task", served.saved.adapters["lora4"])
    await served.push("task", served.saved.adapters["rslora8"])
    first, second = await client.list_versions("task")
    assert (await client.generate("hi", adapter="task", max_output_tokens=2)).version is not None
    await client.move_alias("task", "live", 2)
    for reference, digest in (
        ("task", second.digest),
        ("task@live", second.digest),
        ("task@1", first.digest),
        (first.digest, first.digest),
    ):
        answer = await client.generate("hi", adapter=reference, max_output_tokens=2)
        assert answer.version is not None
        assert answer.version.digest == digest
