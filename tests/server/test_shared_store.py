"""Servers that share one store: each follows the others, and serves on while it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from adapter_support.proxy import Proxy, proxy_to
from adapter_support.s3_server import S3Server, s3_server
from server_support.service import Service, running_service

from polygraft.adapters.errors import Unavailable


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy_to(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(params=["local", "s3"])
async def services(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Service, Service]]:
    """Two servers of one store; a bucket is reached through `proxy`."""
    store = str(tmp_path / "store")
    if request.param == "s3":
        request.getfixturevalue("proxy")
        store = request.getfixturevalue("s3").bucket()
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(
                running_service(
                    store,
                    storage={"local_dir": tmp_path / name, "poll_seconds": 0.05, "timeout": 3},
                )
            )
            for name in ("one", "two")
        ]
        yield one, two


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def points_to(service: Service, number: int) -> bool:
    live = service.server.registry.live("sum")
    return live is not None and live.number == number


async def test_what_one_server_does_the_other_answers_with(
    services: tuple[Service, Service], tmp_path: Path
) -> None:
    one, two = services
    first = one.publish("sum", tmp_path / "a1", seed=1)
    second = one.publish("sum", tmp_path / "a2", seed=2)
    await until(lambda: points_to(two, 1))
    assert (await two.client.generate("x", adapter="sum")).versions[0].digest == first.digest
    await one.client.move_alias("sum", "live", 2)
    await until(lambda: points_to(two, 2))
    assert (await two.client.generate("x", adapter="sum")).versions[0].digest == second.digest
    await two.client.move_alias("sum", "live", 1, expected_generation=2)
    await until(lambda: points_to(one, 1))


@pytest.mark.parametrize("services", ["s3"], indirect=True)
async def test_copies_of_a_bucket_on_the_disk_are_told(
    services: tuple[Service, Service], tmp_path: Path
) -> None:
    one, two = services
    record = one.publish("sum", tmp_path / "a1", seed=1)
    await until(lambda: points_to(two, 1))

    async def tier() -> str:
        version = (await two.client.get_adapter("sum")).version
        assert version is not None
        return version.tier

    def on_disk() -> float | None:
        return two.metrics().get_sample_value("polygraft_store_cache_bytes")

    assert (await tier(), on_disk()) == ("store", 0)
    await two.client.load_adapter("sum")
    assert await tier() == "device"
    await two.client.unload_adapter("sum")
    assert (await tier(), on_disk()) == ("disk", record.manifest.size_bytes)


@pytest.mark.parametrize("services", ["s3"], indirect=True)
async def test_a_server_whose_store_is_away_serves_on_and_refuses_moves(
    services: tuple[Service, Service], proxy: Proxy, tmp_path: Path
) -> None:
    one, _ = services
    record = one.publish("sum", tmp_path / "a1", seed=1)
    one.publish("sum", tmp_path / "a2", seed=2)
    await one.client.generate("x", adapter="sum")
    proxy.go_down()
    await until(lambda: one.metrics().get_sample_value("polygraft_store_up") == 0)
    assert (await one.client.generate("x", adapter="sum")).versions[0].digest == record.digest
    with pytest.raises(Unavailable) as caught:
        await one.client.move_alias("sum", "live", 2)
    assert caught.value.code == "STORE_UNAVAILABLE"
    proxy.is_down = False
    await until(lambda: one.metrics().get_sample_value("polygraft_store_up") == 1)
    assert (await one.client.move_alias("sum", "live", 2)).generation == 2
