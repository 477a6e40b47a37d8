"""AdapterService but for uploads: listing, aliases, deletes, loading."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from server_support.service import DSUM_RECIPE, Service

from polygraft.client import (
    AdapterInUse,
    AdapterNotFound,
    AliasConflict,
    DeadlineExpired,
    InvalidRequest,
)
from polygraft.client.calls import list_adapters, list_versions
from polygraft.protos import adapters_pb2
from polygraft.server.grpc.paging import page_of


async def test_get_shows_the_version_that_the_reference_names(
    service: Service, tmp_path: Path
) -> None:
    one = service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE, seed=1)
    two = service.publish("dsum", tmp_path / "b", seed=2)
    for reference, record in (
        ("dsum", one),
        ("dsum@live", one),
        ("dsum@2", two),
        (two.digest, two),
    ):
        adapter = await service.client.get_adapter(reference)
        assert adapter.version is not None
        assert (adapter.name, adapter.num_versions) == ("dsum", 2)
        assert adapter.version.digest == record.digest
        assert adapter.version.verified
        manifest = json.loads(adapter.version.manifest_json)
        assert manifest["schema"] == "polygraft.adapter/1"


@pytest.mark.parametrize(
    ("reference", "error", "code"),
    [
        ("nope", AdapterNotFound, "ADAPTER_NOT_FOUND"),
        ("dsum@9", AdapterNotFound, "ADAPTER_NOT_FOUND"),
        ("dsum@canary", AdapterNotFound, "ADAPTER_NOT_FOUND"),
        ("sha256:" + "0" * 64, AdapterNotFound, "ADAPTER_NOT_FOUND"),
        ("", InvalidRequest, "INVALID_REFERENCE"),
        ("../x", InvalidRequest, "INVALID_REFERENCE"),
        ("dsum@", InvalidRequest, "INVALID_REFERENCE"),
    ],
)
async def test_a_reference_to_nothing_says_what_there_is(
    service: Service, tmp_path: Path, reference: str, error: type[Exception], code: str
) -> None:
    service.publish("dsum", tmp_path / "a")
    with pytest.raises(error) as caught:
        await service.client.get_adapter(reference)
    assert caught.value.code == code  # type: ignore[attr-defined]
    if reference:
        with pytest.raises(error):
            await service.client.generate("Hi", adapter=reference)


async def test_lists_come_in_pages_and_the_client_follows_them(
    service: Service, tmp_path: Path
) -> None:
    for index in range(5):
        service.publish(f"a{index}", tmp_path / str(index), seed=index)
    adapters = await service.client.list_adapters()
    assert [adapter.name for adapter in adapters] == ["a0", "a1", "a2", "a3", "a4"]
    call = list_adapters("")
    assert isinstance(call.request, adapters_pb2.ListAdaptersRequest)
    call.request.page_size = 2
    first, token = await service.client._run(call)
    call.request.page_token = token
    second, _ = await service.client._run(call)
    assert [adapter.name for adapter in [*first, *second]] == ["a0", "a1", "a2", "a3"]


def test_pages_survive_inserts_and_deletes_between_them() -> None:
    first, token = page_of(["a", "b", "c", "d"], str, 2, "")
    second, end = page_of(["aa", "b", "bb", "c"], str, 2, token)
    assert (list(first), list(second), end) == (["a", "b"], ["bb", "c"], "")


@pytest.mark.parametrize(("size", "token"), [(-1, ""), (1001, ""), (1, "%%%"), (1, "é")])
def test_bad_pages_are_refused(size: int, token: str) -> None:
    with pytest.raises(InvalidRequest):
        page_of(["a"], str, size, token)


async def test_versions_are_listed_by_number(service: Service, tmp_path: Path) -> None:
    for index in range(12):
        service.publish("dsum", tmp_path / str(index), seed=index)
    versions = await service.client.list_versions("dsum")
    assert [version.number for version in versions] == list(range(1, 13))
    call = list_versions("dsum", "")
    assert isinstance(call.request, adapters_pb2.ListAdapterVersionsRequest)
    call.request.page_size = 10
    page, token = await service.client._run(call)
    assert page[-1].number == 10
    assert token


async def test_an_alias_moves_by_compare_and_swap(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", seed=1)
    service.publish("dsum", tmp_path / "b", seed=2)
    move = service.client.move_alias
    moved = await move("dsum", "live", 2, expected_generation=1, reason="better")
    assert (moved.number, moved.generation, moved.reason) == (2, 2, "better")
    with pytest.raises(AliasConflict) as caught:
        await move("dsum", "live", 1, expected_generation=1)
    assert caught.value.metadata["generation"] == "2"
    back = await move("dsum", "live", 1)
    assert (back.number, back.generation) == (1, 3)
    with pytest.raises(AliasConflict):
        await move("dsum", "live", 2, expected_generation=0)
    assert (await move("dsum", "canary", 2, expected_generation=0)).generation == 1


async def test_deleting_what_an_alias_names_is_refused(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", seed=1)
    service.publish("dsum", tmp_path / "b", seed=2)
    with pytest.raises(AdapterInUse):
        await service.client.delete_version("dsum", 1)
    await service.client.delete_version("dsum", 2)
    with pytest.raises(AdapterNotFound):
        await service.client.get_adapter("dsum@2")
    await service.client.delete_adapter("dsum")
    assert await service.client.list_adapters() == []
    with pytest.raises(AdapterNotFound):
        await service.client.delete_adapter("dsum")


async def test_deleting_is_refused_while_a_request_runs(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a")
    service.engine.may_step.clear()
    running = asyncio.create_task(service.client.generate("Hi", adapter="dsum"))
    while not service.engine.requests:
        await asyncio.sleep(0.005)
    with pytest.raises(AdapterInUse):
        await service.client.delete_adapter("dsum")
    service.engine.may_step.set()
    assert (await running).text
    await service.client.delete_adapter("dsum")


async def test_loading_and_unloading_are_idempotent(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a")
    adapter = await service.client.get_adapter("dsum")
    assert adapter.version is not None
    assert adapter.version.tier == "store"
    for _ in range(2):
        assert (await service.client.load_adapter("dsum", pin=True)).tier == "device"
    for _ in range(2):
        assert (await service.client.unload_adapter("dsum")).tier == "store"


async def test_unloading_waits_for_running_requests_and_the_deadline(
    service: Service, tmp_path: Path
) -> None:
    service.publish("dsum", tmp_path / "a")
    service.engine.may_step.clear()
    running = asyncio.create_task(service.client.generate("Hi", adapter="dsum"))
    while not service.engine.requests:
        await asyncio.sleep(0.005)
    with pytest.raises(DeadlineExpired):
        await service.client.unload_adapter("dsum", timeout=0.1)
    unloading = asyncio.create_task(service.client.unload_adapter("dsum"))
    await asyncio.sleep(0.05)
    assert not unloading.done()
    service.engine.may_step.set()
    assert (await running).text == service.engine.reply
    assert (await unloading).tier == "store"


async def test_callers_that_leave_take_no_thread_from_those_that_wait(
    service: Service, tmp_path: Path
) -> None:
    """As many unloads as there are threads wait for a request, and their callers leave."""
    digest = service.publish("busy", tmp_path / "a", seed=1).digest
    service.publish("other", tmp_path / "b", seed=2)
    service.server.residency.acquire(digest)
    unloads = [
        asyncio.create_task(service.client.unload_adapter("busy", timeout=300)) for _ in range(16)
    ]
    entry = service.server.residency._table.entries[digest]
    while entry.unloaders < 16:
        await asyncio.sleep(0.005)
    for call in unloads:
        call.cancel()
    await asyncio.gather(*unloads, return_exceptions=True)
    assert (await service.client.load_adapter("other", timeout=30)).tier == "device"
    async with asyncio.timeout(10):
        while entry.unloaders:
            await asyncio.sleep(0.005)
    service.server.residency.release(digest)
