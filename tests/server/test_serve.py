"""Starting, draining and dying: what callers and balancers see of it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from server_support.fake_engine import FakeEngine
from server_support.service import Service, running_service, until_idle

from polygraft.client import Unavailable
from polygraft.server.config import ConfigError, ServerConfig
from polygraft.server.grpc.listener import Listener
from polygraft.server.metrics import Metrics
from polygraft.server.ports import take_port
from polygraft.server.serve import run_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(service: Service) -> int:
    async with grpc.aio.insecure_channel(service.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return int((await check(health_pb2.HealthCheckRequest())).status)


async def until_refused(service: Service) -> Unavailable:
    """The error that new requests get once the server refuses them."""
    for _ in range(400):
        try:
            await service.client.tokenize("Hi")
        except Unavailable as error:
            return error
        await asyncio.sleep(0.005)
    raise AssertionError("new requests were never refused")


async def test_draining_refuses_new_requests_and_finishes_running_ones(service: Service) -> None:
    service.engine.may_step.clear()
    running = [asyncio.create_task(service.client.generate("Hi")) for _ in range(4)]
    while len(service.engine.requests) < 4:
        await asyncio.sleep(0.005)
    draining = asyncio.create_task(service.server.drain())
    assert (await until_refused(service)).code == "DRAINING"
    assert await health_of(service) == NOT_SERVING
    assert not draining.done()
    service.engine.may_step.set()
    assert {answer.text for answer in await asyncio.gather(*running)} == {service.engine.reply}
    await asyncio.wait_for(draining, 2)


async def test_health_warns_balancers_before_anything_is_refused(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store", drain_delay=0.3) as service:
        draining = asyncio.create_task(service.server.drain())
        await asyncio.sleep(0.05)
        assert await health_of(service) == NOT_SERVING
        assert (await service.client.generate("Hi")).text == service.engine.reply
        assert (await until_refused(service)).code == "DRAINING"
        await draining


async def test_what_is_left_at_the_drain_timeout_is_told_so(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store", drain_timeout=0.2) as service:
        service.engine.may_step.clear()
        running = asyncio.create_task(service.client.generate("Hi"))
        while not service.engine.requests:
            await asyncio.sleep(0.005)
        started = time.monotonic()
        await service.server.drain()
        assert 0.2 <= time.monotonic() - started < 1
        with pytest.raises(Unavailable) as caught:
            await running
        assert caught.value.code == "DRAINING"
        await until_idle(service.server)


async def test_a_second_signal_ends_the_drain(service: Service) -> None:
    service.engine.may_step.clear()
    running = asyncio.create_task(service.client.generate("Hi"))
    while not service.engine.requests:
        await asyncio.sleep(0.005)
    hurry = asyncio.Event()
    draining = asyncio.create_task(service.server.drain(hurry))
    await asyncio.sleep(0.05)
    assert not draining.done()
    hurry.set()
    await asyncio.wait_for(draining, 1)
    with pytest.raises(Unavailable):
        await running


async def test_when_the_engine_dies_everybody_is_told(service: Service) -> None:
    service.engine.may_step.clear()
    running = asyncio.create_task(service.client.generate("Hi"))
    while not service.engine.requests:
        await asyncio.sleep(0.005)
    await asyncio.to_thread(service.engine.die)
    with pytest.raises(Unavailable) as caught:
        await running
    assert caught.value.code == "ENGINE_DEAD"
    await asyncio.wait_for(service.server.engine_died.wait(), 3)
    assert await health_of(service) == NOT_SERVING
    with pytest.raises(Unavailable):
        await service.client.generate("Hi")


async def test_health_follows_an_engine_that_is_stuck_and_recovers(tmp_path: Path) -> None:
    class StuckEngine(FakeEngine):
        age = 0.0

        def stats(self) -> Any:
            import dataclasses

            return dataclasses.replace(super().stats(), step_age=self.age)

    engine = StuckEngine(token_ids=lambda request: itertools.repeat(0))
    async with running_service(tmp_path / "store", engine=engine, stuck_after=0.1) as service:
        engine.may_step.clear()
        running = asyncio.create_task(service.client.generate("Hi", max_output_tokens=5))
        engine.age = 1.0
        while await health_of(service) != NOT_SERVING:
            await asyncio.sleep(0.05)
        engine.age = 0.0
        while await health_of(service) != SERVING:
            await asyncio.sleep(0.05)
        engine.may_step.set()
        await running


async def test_a_leak_is_told_while_nothing_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_service(tmp_path / "store", check_seconds=0.05) as service:

        def failures() -> float | None:
            return service.metrics().get_sample_value("polygraft_integrity_failures_total")

        version = service.publish("dsum", tmp_path / "a")
        service.engine.may_step.clear()
        running = asyncio.create_task(service.client.generate("Hi", adapter="dsum"))
        await asyncio.sleep(0.4)  # several looks, none of which takes what runs for a leak
        service.engine.may_step.set()
        await running
        await asyncio.sleep(0.4)
        assert failures() == 0
        service.server.residency.acquire(version.digest)  # and nobody gives it back
        while not failures():
            await asyncio.sleep(0.05)
        assert "the books do not agree: 1 references held" in caplog.text
        service.server.residency.release(version.digest)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
async def test_a_port_that_was_asked_for_and_is_taken_is_an_error(
    tmp_path: Path, taken_port: int, setting: str
) -> None:
    settings: dict[str, Any] = {"port": 0, "metrics_port": 0, setting: taken_port}
    config = ServerConfig(store=tmp_path, **settings)
    load = cast(Any, FakeEngine().load)
    with pytest.raises(ConfigError) as caught:
        async with run_server(config, load=load):
            pass
    assert caught.value.item == setting
    assert str(taken_port) in str(caught.value)


def test_a_default_port_that_is_taken_gives_way_to_a_free_one(taken_port: int) -> None:
    config = ServerConfig.model_construct(_fields_set=set(), port=taken_port)
    asked: list[int] = []

    def bind(host: str, port: int) -> int:
        asked.append(port)
        return port or 12345

    assert take_port(bind, config, "port") == 12345
    assert asked == [0]


def test_an_address_that_is_not_ours_is_an_error() -> None:
    config = ServerConfig(host="192.0.2.1")

    def bind(host: str, port: int) -> int:
        raise OSError("cannot assign requested address")

    with pytest.raises(ConfigError) as caught:
        take_port(bind, config, "port")
    assert caught.value.item == "host"


async def test_two_servers_never_share_a_port(service: Service) -> None:
    other = Listener(Metrics(), max_message_bytes=1 << 20, max_rpcs=8)
    with pytest.raises(OSError, match="address"):
        other.bind("127.0.0.1", service.server.port)
    await other.stop(0)


async def test_adapters_survive_a_restart(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store") as service:
        version = service.publish("dsum", tmp_path / "a")
    async with running_service(tmp_path / "store") as service:
        answer = await service.client.generate("Hi", adapter="dsum")
        assert answer.version is not None
        assert answer.version.digest == version.digest


async def test_a_store_of_another_base_is_refused_by_fingerprint(tmp_path: Path) -> None:
    import dataclasses

    async with running_service(tmp_path / "store") as service:
        service.publish("dsum", tmp_path / "a")
    engine = FakeEngine()
    other = dataclasses.replace(engine.geometry.fingerprint, weights_sha256="f" * 64)
    engine.geometry = dataclasses.replace(engine.geometry, fingerprint=other)
    async with running_service(tmp_path / "store", engine=engine) as service:
        shown = await service.client.get_adapter("dsum")
        assert shown.version is not None
        assert not shown.version.verified
        with pytest.raises(Exception, match="f" * 64) as caught:
            await service.client.generate("Hi", adapter="dsum")
        assert caught.value.code == "ADAPTER_INCOMPATIBLE"  # type: ignore[attr-defined]
