"""After every way a request can end, the server holds what it held at its start."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_support.architectures import VOCAB
from engine_support.harness import random_prompts
from safetensors.torch import load_file, save_file

from polygraft.client import AdapterInUse, DeadlineExpired

if TYPE_CHECKING:
    from conftest import Served

KINDS = ("lora4", "rslora8", "patterns16", "soft")


async def settle(served: Served) -> dict[str, int]:
    """The ledger once nothing is live any more, or after five seconds."""
    for _ in range(500):
        ledger = served.server.ledger()
        if not ledger["live_requests"] and not ledger["live_sequences"]:
            break
        await asyncio.sleep(0.01)
    return served.server.ledger()


async def test_ledger_after_cancelled_timed_out_and_finished_requests(served: Served) -> None:
    client = served.client
    for kind in KINDS:
        await served.push(kind, served.saved.adapters[kind])
    await client.generate("warm up", max_output_tokens=1)
    start = served.server.ledger()
    tasks_at_start = len(asyncio.all_tasks())
    prompts = random_prompts(450, vocab=VOCAB, seed=1, longest=30)
    rng = random.Random(0)

    async def finish(i: int) -> str:
        adapter = ("", *KINDS)[i % 5]
        answer = await client.generate(
            token_ids=prompts[i], adapter=adapter, max_output_tokens=8, ignore_eos=True
        )
        assert answer.usage.output_tokens == 8
        return answer.finish_reason

    async def cancel(i: int) -> str:
        adapter = ("", *KINDS)[i % 5]
        stream = client.stream(
            token_ids=prompts[i], adapter=adapter, max_output_tokens=200, ignore_eos=True
        )
        enough = rng.randrange(6)
        try:
            async with asyncio.timeout(rng.random() if enough == 0 else None):
                async for _ in stream:
                    enough -= 1
                    if enough <= 0:
                        break
        except TimeoutError:
            pass
        finally:
            await stream.aclose()
        return "cancelled"

    async def time_out(i: int) -> str:
        try:
            await client.generate(
                token_ids=prompts[i], max_output_tokens=220, ignore_eos=True, timeout=0.05
            )
        except DeadlineExpired:
            return "deadline"
        return "finished in time"

    kinds = [finish] * 200 + [cancel] * 200 + [time_out] * 50
    rng.shuffle(kinds)
    gate = asyncio.Semaphore(48)

    async def run(i: int) -> str:
        async with gate:
            return await kinds[i](i)

    endings = await asyncio.gather(*(run(i) for i in range(450)))
    assert endings.count("length") == 200
    assert endings.count("cancelled") == 200
    assert endings.count("deadline") >= 40
    assert await settle(served) == start
    served.server.check_integrity()
    assert len(asyncio.all_tasks()) <= tasks_at_start + 1


async def test_unloading_frees_the_device_and_the_next_request_loads_again(
    served: Served,
) -> None:
    client = served.client
    free_rows = served.server.engine.stats().free_pool_rows
    await served.push("a", served.saved.adapters["patterns16"])  # its self-test brings it there
    await client.load_adapter("a")
    assert served.server.engine.stats().free_pool_rows < free_rows
    await client.unload_adapter("a")
    assert served.server.engine.stats().free_pool_rows == free_rows
    answer = await client.generate("hello", adapter="a", max_output_tokens=3)
    assert answer.usage.output_tokens >= 1
    served.server.check_integrity()


def scaled_copy(original: Path, directory: Path, factor: float) -> Path:
    """The same adapter with other weights, hence another version."""
    shutil.copytree(original, directory)
    weights = load_file(directory / "adapter_model.safetensors")
    save_file({k: v * factor for k, v in weights.items()}, directory / "adapter_model.safetensors")
    return directory


async def test_more_adapters_than_device_rows_take_turns(served: Served, tmp_path: Path) -> None:
    """128 rank rows hold eight versions of rank 16; sixteen are asked for at once."""
    client = served.client
    for i in range(16):
        original = served.saved.adapters[("lora4", "rslora8")[i % 2]]
        await served.push(f"many-{i}", scaled_copy(original, tmp_path / str(i), 1 + i / 64))
    for kind in KINDS:
        await served.push(kind, served.saved.adapters[kind])
    names = [f"many-{i}" for i in range(16)] + list(KINDS)
    answers = await asyncio.gather(
        *(
            client.generate("abc", adapter=name, max_output_tokens=10, ignore_eos=True)
            for name in names * 3
        )
    )
    assert all(answer.usage.output_tokens == 10 for answer in answers)
    digests = {answer.version.digest for answer in answers if answer.version}
    assert len(digests) == len(names)
    assert (await settle(served))["adapter_references"] == 0
    served.server.check_integrity()


async def test_a_pinned_version_is_not_deleted_until_it_is_unloaded(served: Served) -> None:
    client = served.client
    await served.push("a", served.saved.adapters["lora4"])
    await client.load_adapter("a", pin=True)
    with pytest.raises(AdapterInUse):
        await client.delete_adapter("a")
    await client.unload_adapter("a")
    await client.delete_adapter("a")
    assert not await client.list_adapters()
