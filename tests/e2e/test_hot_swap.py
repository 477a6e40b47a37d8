"""`live` moves while requests stream: none fails, each is one version's own answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine_support.architectures import VOCAB
from engine_support.harness import random_prompts
from engine_support.peft_adapters import generate_alone

if TYPE_CHECKING:
    from conftest import Served

NUM_REQUESTS, NUM_MOVES, NUM_TOKENS = 200, 20, 12
VERSIONS = ("lora4", "rslora8", "patterns16")
PROMPTS = random_prompts(8, vocab=VOCAB, seed=12, longest=30)


async def test_200_streams_while_live_moves_20_times(served: Served) -> None:
    client = served.client
    for kind in VERSIONS:
        await served.push("task", served.saved.adapters[kind])
    versions = {v.digest: v.number for v in await client.list_versions("task")}
    assert sorted(versions.values()) == [1, 2, 3]

    async def ask(i: int) -> tuple[int, str, list[int]]:
        await asyncio.sleep(i * 0.01)  # arrivals spread over the moves
        token_ids: list[int] = []
        stream = client.stream(
            token_ids=PROMPTS[i % len(PROMPTS)],
            adapter="task",
            max_output_tokens=NUM_TOKENS,
            ignore_eos=True,
            return_token_ids=True,
        )
        async for piece in stream:
            token_ids += piece.token_ids
        assert stream.generation is not None
        assert stream.generation.version is not None
        return i, stream.generation.version.digest, token_ids

    async def move() -> int:
        generation = 0
        for i in range(NUM_MOVES):
            await asyncio.sleep(0.1)
            alias = await client.move_alias("task", "live", i % len(VERSIONS) + 1)
            assert alias.generation > generation
            generation = alias.generation
        return generation

    *answers, _ = await asyncio.gather(*(ask(i) for i in range(NUM_REQUESTS)), move())
    expected = {
        number: [
            tokens
            for tokens, _ in generate_alone(
                served.saved.base, served.saved.adapters[kind], PROMPTS, NUM_TOKENS
            )
        ]
        for number, kind in enumerate(VERSIONS, start=1)
    }
    served_numbers = set()
    for i, digest, token_ids in answers:
        number = versions[digest]
        served_numbers.add(number)
        assert token_ids == expected[number][i % len(PROMPTS)], f"request {i}, version {number}"
    assert served_numbers == {1, 2, 3}, "the moves were not seen"
    for digest in versions:
        assert served.server.residency.references(digest) == 0


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
