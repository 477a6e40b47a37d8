"""Aliases over the service: splits, history, rollback, events, and moves that are refused."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
from adapter_support.directories import write_adapter
from server_support.service import Service, running_service

from polygraft.adapters.registry import VersionRecord
from polygraft.client import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterNotFound,
    AliasConflict,
    AsyncClient,
    AsyncWatch,
    Client,
    GatePolicy,
    GateRefused,
    InvalidRequest,
    Overloaded,
    ScoreItem,
    Unavailable,
)


@pytest.fixture
def versions(service: Service, tmp_path: Path) -> list[VersionRecord]:
    return [service.publish("sum", tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]


async def answered_by(service: Service, **options: str) -> str:
    answer = await service.client.generate("Hi", adapter="sum", max_output_tokens=1, **options)  # type: ignore[arg-type]
    assert answer.version is not None
    return answer.version.digest


async def test_a_canary_gets_its_share_and_keys_stick(
    service: Service, versions: list[VersionRecord]
) -> None:
    first, second, _ = (record.digest for record in versions)
    moved = await service.client.move_alias("sum", "live", 1, canary=2, canary_weight=0.3)
    assert [(t.number, t.weight) for t in moved.targets] == [(1, 0.7), (2, 0.3)]
    record = service.server.registry.live("sum")
    assert record is not None
    keys = [f"user-{n}" for n in range(40)]
    for key in keys:
        expected = record.target_for(key).digest
        assert {await answered_by(service, sticky_key=key) for _ in range(2)} == {expected}
    assert {record.target_for(key).digest for key in keys} == {first, second}
    # Without a key every request is by itself.
    seen = Counter([await answered_by(service) for _ in range(60)])
    assert set(seen) == {first, second}
    [request_score] = await service.client.score(
        [ScoreItem("b", prompt="a")], adapter="sum", sticky_key=keys[0]
    )
    assert request_score.versions[0].digest == record.target_for(keys[0]).digest
    adapter = await service.client.get_adapter("sum")
    assert adapter.version is not None
    assert adapter.version.digest == first  # the one in charge


async def test_whoever_got_the_canary_keeps_it_when_it_grows(
    service: Service, versions: list[VersionRecord]
) -> None:
    move = service.client.move_alias
    await move("sum", "live", 1, canary=2, canary_weight=0.3)
    keys = [f"user-{n}" for n in range(30)]
    before = {key: await answered_by(service, sticky_key=key) for key in keys}
    await move("sum", "live", 1, canary=2, canary_weight=0.6)
    after = {key: await answered_by(service, sticky_key=key) for key in keys}
    canary = versions[1].digest
    assert {key for key in keys if before[key] == canary} < {
        key for key in keys if after[key] == canary
    }


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 2.0])
async def test_shares_that_are_none_are_refused(
    service: Service, versions: list[VersionRecord], weight: float
) -> None:
    with pytest.raises(InvalidRequest, match="no share"):
        await service.client.move_alias("sum", "live", 1, canary=2, canary_weight=weight)


async def test_two_new_versions_may_come_in_at_once_where_no_gate_is_demanded(
    service: Service, versions: list[VersionRecord]
) -> None:
    moved = await service.client.move_alias("sum", "live", 2, canary=3, canary_weight=0.5)
    assert [target.number for target in moved.targets] == [2, 3]


async def test_a_canary_is_not_deleted_and_must_be_another_version(
    service: Service, versions: list[VersionRecord]
) -> None:
    await service.client.move_alias("sum", "live", 1, canary=2)
    with pytest.raises(AdapterInUse, match="sum@2 is the target of live"):
        await service.client.delete_version("sum", 2)
    with pytest.raises(InvalidRequest, match="given twice"):
        await service.client.move_alias("sum", "live", 1, canary=1)
    with pytest.raises(AdapterNotFound, match="sum@9"):
        await service.client.move_alias("sum", "live", 1, canary=9)
    with pytest.raises(InvalidRequest, match="sticky_key"):
        await service.client.generate("Hi", adapter="sum", sticky_key="k" * 257)


async def test_history_tells_who_when_and_why(
    service: Service, versions: list[VersionRecord]
) -> None:
    client = service.client
    await client.move_alias("sum", "live", 2, reason="better")
    await client.move_alias("sum", "live", 2, canary=3, reason="try")
    await client.rollback_alias("sum", reason="worse")
    moves = await client.alias_history("sum")
    assert [(m.generation, m.number, m.reason, m.restored) for m in moves] == [
        (4, 2, "worse", 2),
        (3, 2, "try", 0),
        (2, 2, "better", 0),
        (1, 1, "first version", 0),
    ]
    assert moves[1].canary is not None
    assert {m.moved_by for m in moves[:3]} == {"127.0.0.1"}
    assert moves[0].moved_at >= moves[1].moved_at
    await client.delete_alias("sum", "live", reason="retired")
    assert (await client.alias_history("sum"))[0].targets == ()
    with pytest.raises(AdapterNotFound, match="no alias 'sum@live'"):
        await client.generate("Hi", adapter="sum")
    with pytest.raises(AdapterNotFound):
        await client.alias_history("sum", "nope")


async def test_rollback_goes_back_to_one_version_and_then_further_back(
    service: Service, versions: list[VersionRecord]
) -> None:
    client = service.client
    await client.move_alias("sum", "live", 2)
    await client.move_alias("sum", "live", 2, canary=3, canary_weight=0.1)
    await client.move_alias("sum", "live", 3)
    assert (await client.rollback_alias("sum")).number == 2  # not the split
    assert (await client.rollback_alias("sum")).number == 1  # not 3 again
    with pytest.raises(InvalidRequest, match="no older version"):
        await client.rollback_alias("sum")
    split = await client.rollback_alias("sum", generation=3)
    assert [t.number for t in split.targets] == [2, 3]
    with pytest.raises(InvalidRequest, match="not an older one"):
        await client.rollback_alias("sum", generation=99)
    with pytest.raises(AliasConflict):
        await client.rollback_alias("sum", expected_generation=2)
    with pytest.raises(AdapterNotFound, match="There is: sum@live"):
        await client.rollback_alias("sum", "canary")


async def test_rollback_takes_a_canary_away(
    service: Service, versions: list[VersionRecord]
) -> None:
    await service.client.move_alias("sum", "live", 1, canary=2, canary_weight=0.5)
    back = await service.client.rollback_alias("sum")
    assert [(t.number, t.weight) for t in back.targets] == [(1, 1.0)]


async def test_a_version_that_cannot_be_loaded_is_not_promoted(
    service: Service, versions: list[VersionRecord]
) -> None:
    path = service.server.registry.files(versions[1].digest)["adapter_model.safetensors"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AdapterCorrupt):
        await service.client.move_alias("sum", "live", 2)
    assert await answered_by(service) == versions[0].digest
    assert (await service.client.get_adapter("sum")).aliases[0].generation == 1


async def test_a_move_loads_first_and_keeps_what_it_leaves_on_the_host(
    service: Service, versions: list[VersionRecord]
) -> None:
    residency = service.server.residency
    await answered_by(service)
    await service.client.move_alias("sum", "live", 2)
    assert residency.tier(versions[1].digest).value == "device"
    entry = residency._table.entries[versions[0].digest]
    assert entry.kept_until > 0
    assert residency._table.entries[versions[1].digest].kept_until == 0


async def test_a_gated_alias_lets_nothing_in_by_any_way(
    service: Service, versions: list[VersionRecord], tmp_path: Path
) -> None:
    client = service.client
    await client.move_alias("sum", "live", 1, policy=GatePolicy(required=True))
    with pytest.raises(GateRefused, match="has not passed its gate"):
        await client.move_alias("sum", "live", 2)
    with pytest.raises(GateRefused):
        await client.move_alias("sum", "live", 1, canary=2)
    with pytest.raises(GateRefused):
        service.server.registry.move_alias("sum", "live", 2)
    folder = write_adapter(tmp_path / "up")
    with pytest.raises(GateRefused):
        await client.upload_adapter(folder, "sum", alias="live", allow_unverified_base=True)
    assert len(await client.list_versions("sum")) == 3, "refused before anything was published"
    with pytest.raises(InvalidRequest, match="needs a reason"):
        await client.move_alias("sum", "live", 2, force=True)
    forced = await client.move_alias("sum", "live", 2, force=True, reason="outage")
    assert (forced.forced, forced.reason, forced.number) == (True, "outage", 2)
    assert forced.policy is not None
    assert forced.policy.required
    assert (await client.rollback_alias("sum")).number == 1  # never gated
    assert (await client.move_alias("sum", "canary", 3)).number == 3  # another alias


async def next_of(watch: AsyncWatch) -> tuple[str, int]:
    event = await asyncio.wait_for(anext(watch), 5)
    return event.kind, event.number


async def test_watchers_see_what_happens_and_go_on_from_a_cursor(
    service: Service, versions: list[VersionRecord], tmp_path: Path
) -> None:
    client = service.client
    async with client.watch("sum") as watch:
        assert await next_of(watch) == ("watching", 0)
        start = watch.cursor
        service.publish("other", tmp_path / "other", seed=9)
        service.publish("sum", tmp_path / "4", seed=4)
        await client.move_alias("sum", "live", 4, reason="new")
        await client.delete_version("sum", 3)
        await client.delete_alias("sum", "live")
        seen = [await next_of(watch) for _ in range(4)]
        assert seen == [
            ("published", 4),
            ("alias_moved", 4),
            ("version_deleted", 3),
            ("alias_removed", 0),
        ]
    async with client.watch("sum", cursor=start) as again:
        assert await next_of(again) == ("watching", 0)
        assert [await next_of(again) for _ in range(4)] == seen
    async with client.watch("sum", cursor="another.7") as lost:
        assert await next_of(lost) == ("missed", 0)
        place = lost.cursor
    async with client.watch("sum", cursor=place) as found:
        assert await next_of(found) == ("watching", 0)


async def test_loads_are_told_to_those_who_ask(
    service: Service, versions: list[VersionRecord]
) -> None:
    async with service.client.watch("sum", include_residency=True) as watch:
        assert (await next_of(watch))[0] == "watching"
        await service.client.load_adapter("sum@2")
        loaded = [await asyncio.wait_for(anext(watch), 5) for _ in range(2)]
    assert [(event.kind, event.tier) for event in loaded] == [
        ("loaded", "host"),
        ("loaded", "device"),
    ]
    assert {event.digest for event in loaded} == {versions[1].digest}


async def test_a_watch_of_what_can_never_be_is_refused(service: Service) -> None:
    for name in ("../x", "sum@canary", "Sum"):
        with pytest.raises(InvalidRequest, match="is not a valid name"):
            await next_of(service.client.watch(name))
    async with service.client.watch("later") as watch:  # what is not published yet may be
        assert await next_of(watch) == ("watching", 0)


async def test_watches_are_limited_and_end_when_the_server_drains(tmp_path: Path) -> None:
    limits = {"max_watches": 3, "max_caller_watches": 2}
    async with running_service(tmp_path / "store", adapters=limits) as service:
        client = service.client
        one, two = client.watch(), client.watch()
        assert (await next_of(one), await next_of(two)) == (("watching", 0),) * 2
        with pytest.raises(Overloaded) as caught:
            await next_of(client.watch())
        assert caught.value.code == "TOO_MANY_WATCHES"
        await two.aclose()
        await asyncio.sleep(0.1)
        third = client.watch()
        assert await next_of(third) == ("watching", 0)
        draining = asyncio.create_task(service.server.drain())
        for watch in (one, third):
            with pytest.raises(Unavailable):
                await next_of(watch)
        await draining


async def test_other_servers_of_a_store_see_a_move(tmp_path: Path) -> None:
    """One store, two servers: the second follows, its watchers too."""
    async with running_service(tmp_path / "store") as one:
        first = one.publish("sum", tmp_path / "a", seed=1)
        second = one.publish("sum", tmp_path / "b", seed=2)
        shared = {"local_dir": str(tmp_path / "two")}
        async with running_service(tmp_path / "store", storage=shared) as two:
            assert await answered_by(two) == first.digest
            async with two.client.watch("sum") as watch:
                assert await next_of(watch) == ("watching", 0)
                await one.client.move_alias("sum", "live", 2)
                assert await next_of(watch) == ("alias_moved", 2)
            assert await answered_by(two) == second.digest


async def test_the_synchronous_client_watches_too(service: Service, tmp_path: Path) -> None:
    ready = threading.Event()

    def watch_one() -> list[str]:
        with Client(service.address) as client, client.watch(timeout=10) as watch:
            first = next(watch).kind
            ready.set()
            return [first, next(watch).kind]

    watching = asyncio.create_task(asyncio.to_thread(watch_one))
    assert await asyncio.to_thread(ready.wait, 10)
    service.publish("sum", tmp_path / "a")
    assert await watching == ["watching", "published"]


async def test_watches_of_clients_that_vanish_are_given_up(service: Service) -> None:
    client = AsyncClient(service.address)
    watch = client.watch()
    await next_of(watch)
    assert service.server.watches.num_watches == 1
    await client.close()
    for _ in range(200):
        if service.server.watches.num_watches == 0:
            break
        await asyncio.sleep(0.01)
    assert service.server.watches.num_watches == 0
