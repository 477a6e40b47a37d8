"""Several references in one request: which versions the engine is given, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from adapter_support.directories import HIDDEN, write_adapter
from peft import PromptTuningConfig
from server_support.service import Service, running_service, until_idle
from torch import ones

from polygraft.adapters.errors import AdapterIncompatible, AdapterNotFound, InvalidRequest
from polygraft.adapters.pool import RowPool
from polygraft.server.engine.messages import AdapterShare


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store") as made:
        for seed, name in enumerate(("one", "two", "three")):
            made.publish(name, tmp_path / name, seed=seed)
        for value, name in enumerate(("soft", "softer")):
            config = PromptTuningConfig(num_virtual_tokens=3, token_dim=HIDDEN)
            tensors = {"prompt_embeddings": ones(3, HIDDEN) * value}
            folder = write_adapter(tmp_path / name, config.to_dict(), tensors)
            await made.client.upload_adapter(folder, name, allow_unverified_base=True)
        yield made


def digest(service: Service, name: str) -> str:
    return service.server.registry.resolve(name).digest


async def test_weights_reach_the_engine_in_one_order(service: Service) -> None:
    for names in ({"one": 0.5, "two@1": -2.0}, {"two": -2.0, "one@live": 0.5}):
        await service.client.generate("Hi", adapters=names)
    first, second = service.engine.requests
    assert first.adapters == second.adapters
    assert set(first.adapters) == {
        AdapterShare(digest(service, "one"), 0.5),
        AdapterShare(digest(service, "two"), -2.0),
    }
    assert list(first.digests) == sorted(first.digests)
    await until_idle(service.server)


async def test_a_lora_behind_a_soft_prompt(service: Service) -> None:
    await service.client.generate("Hi", adapters={"one": 0.5, "soft": 1.0, "two": 0.0})
    [request] = service.engine.requests
    assert {share.digest for share in request.adapters} == {
        digest(service, "one"),
        digest(service, "soft"),
    }, "weight 0 leaves a version out"
    assert (request.num_virtual, request.num_prefix) == (3, 0)


@pytest.mark.parametrize(
    ("adapters", "error", "message"),
    [
        ({"one": 1.0, "one@1": 0.5}, InvalidRequest, "are the same version"),
        ({"soft": 1.0, "softer": 1.0}, InvalidRequest, "at most one of a composition may"),
        ({"one": 1.0, "soft": 0.5}, InvalidRequest, "no update of the base that could be weighted"),
        ({"one": 1.0, "nope": 1.0}, AdapterNotFound, "nope"),
    ],
)
async def test_what_cannot_be_composed_is_refused(
    service: Service, adapters: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await service.client.generate("Hi", adapters=adapters)
    assert service.engine.requests == []


async def test_loras_that_never_fit_together_are_refused_at_once(service: Service) -> None:
    service.engine.bank.pool = RowPool(32)
    three: dict[str, Any] = {"one": 1.0, "two": 1.0, "three": 1.0}
    await service.client.generate("Hi", adapters={"one": 1.0, "two": 1.0})
    with pytest.raises(AdapterIncompatible, match="never compute them in one request") as caught:
        await service.client.generate("Hi", adapters=three)
    assert caught.value.code == "NO_ADAPTER_ROWS"
    assert len(service.engine.requests) == 1
