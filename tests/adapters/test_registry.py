"""Versions, numbers and aliases: what is answered, what is durable, who wins a race."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from adapter_support.press import Press

from polygraft.adapters.errors import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterNotFound,
    AliasConflict,
    InvalidRequest,
    UploadCorrupt,
)
from polygraft.adapters.log import Log
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.protocol import Store


def test_versions_are_numbered_and_the_first_becomes_live(store: Store, press: Press) -> None:
    registry = Registry(store)
    first, second = (press.publish(registry, "sum", n) for n in (1, 2))
    assert (first.number, second.number) == (1, 2)
    assert first.digest == press.make(1)[0].digest
    assert not first.verified
    assert registry.resolve("sum") == first
    assert registry.resolve("sum@live") == first
    assert registry.resolve("sum@2") == second
    assert registry.resolve(second.digest) == second
    assert registry.names() == ["sum"]
    assert registry.versions("sum") == [first, second]
    registry.check_integrity()


def test_the_same_content_gets_no_second_number(store: Store, press: Press) -> None:
    registry = Registry(store)
    first = press.publish(registry, "sum", 1)
    press.publish(registry, "sum", 2)
    assert press.publish(registry, "sum", 1) == first
    other = press.publish(registry, "other", 1)
    assert (other.number, other.digest) == (1, first.digest)
    assert registry.resolve(first.digest).adapter_name == "other"  # the first name by order


def test_everything_is_found_again_by_the_next_server(store: Store, press: Press) -> None:
    registry = Registry(store)
    for content in (1, 2, 3):
        press.publish(registry, "team/sum", content)
    registry.move_alias("team/sum", "canary", 2, reason="try")
    registry.move_alias("team/sum", "live", 3)
    registry.delete_version("team/sum", 1)
    again = Registry(store)
    assert again.names() == ["team/sum"]
    assert again.versions("team/sum") == registry.versions("team/sum")
    assert again.aliases("team/sum") == registry.aliases("team/sum")
    assert again.alias_history("team/sum", "live") == registry.alias_history("team/sum", "live")
    assert press.publish(again, "team/sum", 1).number == 4  # numbers are never given again
    again.check_integrity()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sun", "no adapter 'sun'. There is: sum."),
        ("sum@nothing", "no alias 'sum@nothing'. There is: sum@live."),
        ("sum@9", "no version 'sum@9'. There is: sum@1."),
        ("sha256:" + "0" * 64, "no version sha256:000"),
        ("nope@live", "no adapter 'nope'"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(
    reference: str, message: str, store: Store, press: Press
) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    with pytest.raises(AdapterNotFound) as caught:
        registry.resolve(reference)
    assert message in str(caught.value)


def test_an_empty_registry_says_so(store: Store) -> None:
    with pytest.raises(AdapterNotFound, match="There is none yet"):
        Registry(store).resolve("sum")


def test_aliases_move_by_compare_and_swap(store: Store, press: Press) -> None:
    registry = Registry(store)
    for content in (1, 2, 3):
        press.publish(registry, "sum", content)
    moved = registry.move_alias("sum", "live", 2, expected_generation=1, reason="better")
    assert (moved.generation, moved.number, moved.reason) == (2, 2, "better")
    with pytest.raises(AliasConflict, match="is at generation 2, not 1") as caught:
        registry.move_alias("sum", "live", 3, expected_generation=1)
    assert caught.value.metadata == {"generation": "2"}
    with pytest.raises(AliasConflict):
        registry.move_alias("sum", "live", 3, expected_generation=0)
    created = registry.move_alias("sum", "canary", 3, expected_generation=0)
    assert created.generation == 1
    with pytest.raises(AliasConflict):
        registry.move_alias("sum", "stable", 3, expected_generation=1)
    assert registry.move_alias("sum", "live", 2) == moved  # it points there already
    assert registry.move_alias("sum", "live", 1).generation == 3
    assert [m.number for m in registry.alias_history("sum", "live")] == [1, 2, 1]


def test_an_alias_needs_a_version_and_a_good_name(store: Store, press: Press) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    with pytest.raises(AdapterNotFound):
        registry.move_alias("sum", "live", 2)
    with pytest.raises(InvalidRequest):
        registry.move_alias("sum", "7", 1)
    with pytest.raises(InvalidRequest):
        press.publish(registry, "../sum", 1)


def test_threads_racing_for_an_alias_make_one_history(store: Store, press: Press) -> None:
    registry = Registry(store)
    for content in (1, 2):
        press.publish(registry, "sum", content)
    lost = []

    def flip(_: int) -> None:
        for _ in range(10):
            current = registry.live("sum")
            assert current is not None
            try:
                registry.move_alias(
                    "sum", "live", 3 - current.number, expected_generation=current.generation
                )
            except AliasConflict:
                lost.append(current)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(flip, range(4)))
    history = registry.alias_history("sum", "live")
    assert [m.generation for m in history] == list(range(1, len(history) + 1))
    assert len(history) == 1 + 40 - len(lost)
    assert [m.number for m in history] == [1 + (n % 2) for n in range(len(history))]
    assert Registry(store).alias_history("sum", "live") == history


def test_two_servers_on_one_store_see_each_others_numbers(store: Store, press: Press) -> None:
    one, two = Registry(store), Registry(store)
    assert press.publish(one, "sum", 1).number == 1
    assert press.publish(two, "sum", 2).number == 2  # it had not seen number 1
    assert two.resolve("sum").number == 1  # so `live` stays where the first one put it
    assert press.publish(one, "sum", 2).number == 2  # the same content, found after the conflict
    one.move_alias("sum", "live", 2)
    with pytest.raises(AliasConflict):
        two.move_alias("sum", "live", 2, expected_generation=0)
    two.refresh()
    assert two.resolve("sum").number == 2
    assert two.versions("sum") == one.versions("sum")


def test_publishing_from_many_threads_loses_no_number(store: Store, press: Press) -> None:
    registry = Registry(store)
    made = {content: press.make(content) for content in range(1, 9)}
    barrier = threading.Barrier(8)

    def publish(content: int) -> int:
        barrier.wait()
        return registry.publish("sum", *made[content]).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(publish, made))
    assert sorted(numbers) == list(range(1, 9))
    live = registry.live("sum")
    assert live is not None
    assert live.generation == 1


def test_versions_that_an_alias_or_a_request_holds_are_not_deleted(
    store: Store, press: Press
) -> None:
    used: set[str] = set()
    registry = Registry(store, in_use=used.__contains__)
    first, second, third = (press.publish(registry, "sum", n) for n in (1, 2, 3))
    with pytest.raises(AdapterInUse, match="sum@1 is the target of live"):
        registry.delete_version("sum", 1)
    used.add(second.digest)
    with pytest.raises(AdapterInUse, match="running requests or a pin hold sum@2"):
        registry.delete_version("sum", 2)
    with pytest.raises(AdapterInUse):
        registry.delete_adapter("sum")
    assert registry.versions("sum") == [first, second, third]
    registry.delete_version("sum", 3)
    with pytest.raises(AdapterNotFound):
        registry.resolve("sum@3")
    with pytest.raises(AdapterNotFound):
        registry.resolve(third.digest)
    used.clear()
    registry.delete_adapter("sum")
    assert registry.names() == []
    for reference in ("sum", "sum@2", second.digest):
        with pytest.raises(AdapterNotFound):
            registry.resolve(reference)
    assert registry.files(second.digest)  # for a request that resolved it before
    assert Registry(store).names() == []


def test_a_name_can_be_published_again_after_it_was_deleted(store: Store, press: Press) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    record = press.publish(registry, "sum", 1)
    assert record.number == 2
    assert registry.resolve("sum") == record
    assert [m.number for m in registry.alias_history("sum", "live")] == [1, 0, 2]
    assert Registry(store).resolve("sum") == record


def test_files_that_are_not_those_of_the_manifest_are_not_published(
    store: Store, press: Press
) -> None:
    registry = Registry(store)
    manifest, files = press.make(1)
    with pytest.raises(UploadCorrupt, match="the manifest lists"):
        registry.publish("sum", manifest, {"adapter_config.json": files["adapter_config.json"]})
    files["adapter_config.json"].write_text("{}")
    with pytest.raises(UploadCorrupt, match=r"adapter_config\.json: .*declared size"):
        registry.publish("sum", manifest, files)
    assert registry.names() == []


def test_bytes_that_rot_are_found_refused_and_repaired_by_publishing_again(
    tmp_path: Path, press: Press
) -> None:
    registry = Registry(LocalStore(tmp_path / "store"))
    record = press.publish(registry, "sum", 1)
    path = registry.files(record.digest)["adapter_model.safetensors"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AdapterCorrupt, match="no longer match"):
        registry.files(record.digest)
    with pytest.raises(AdapterCorrupt):  # answered at once from now on
        registry.resolve("sum")
    assert press.publish(registry, "sum", 1) == record
    assert registry.resolve("sum") == record
    assert registry.files(record.digest)
    path.unlink()
    with pytest.raises(AdapterCorrupt, match="missing"):
        registry.files(record.digest)


def test_one_damaged_manifest_does_not_keep_the_others_from_being_served(
    tmp_path: Path, press: Press
) -> None:
    store = LocalStore(tmp_path / "store")
    registry = Registry(store)
    damaged, intact = press.publish(registry, "sum", 1), press.publish(registry, "sum", 2)
    key = f"manifests/sha256/{damaged.digest.removeprefix('sha256:')}.json"
    store.get_path(key).write_text("{}")
    again = Registry(store)
    again.check_integrity()
    assert again.resolve("sum@2") == intact
    for reference in ("sum", "sum@1", damaged.digest):
        with pytest.raises(AdapterCorrupt):
            again.resolve(reference)
    press.publish(again, "sum", 1)
    assert again.resolve("sum") == damaged


def test_a_log_entry_whose_reply_was_lost_is_recognised_as_ours(store: Store) -> None:
    class Forgetful:
        """A store client that retried a create after it had worked."""

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def create(self, key: str, data: bytes | Path) -> bool:
            store.create(key, data)
            return store.create(key, data)

    log = Log(Forgetful(), "log/x/")  # type: ignore[arg-type]
    written = log.append(1, {"value": 7})
    assert written is not None
    assert list(log.entries()) == [(1, written)]
    assert Log(store, "log/x/").append(1, {"value": 8}) is None


def publish_until_killed(
    root: Path, made: list[tuple[Manifest, dict[str, Path]]], replies: Connection
) -> None:
    registry = Registry(LocalStore(root))
    for manifest, files in made:
        record = registry.publish("sum", manifest, files)
        registry.move_alias("sum", "live", record.number)
        replies.send((record.number, record.digest))


def test_every_acknowledged_publish_survives_kill_9(tmp_path: Path, press: Press) -> None:
    """The parent only counts replies, so a kill lands anywhere in the steps of a publish."""
    made = [press.make(content) for content in range(1, 40)]
    acknowledged: dict[int, str] = {}
    for round_ in range(8):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=publish_until_killed, args=(tmp_path / "store", made, sender)
        )
        process.start()
        sender.close()
        for _ in range(1 + 2 * round_):
            acknowledged.update([receiver.recv()])
        time.sleep(0.0011 * round_)
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                acknowledged.update([receiver.recv()])
        receiver.close()
        process.close()
        registry = Registry(LocalStore(tmp_path / "store"))
        registry.check_integrity()
        for number, digest in acknowledged.items():
            assert registry.version("sum", number).digest == digest
        for record in registry.versions("sum"):
            assert registry.files(record.digest)  # whole, acknowledged or not
    assert len(acknowledged) > 8
