"""What every store does: on a disk, in memory, in a bucket of a real HTTP S3 server, and over HTTP
in the words of Google's and Azure's storage."""

from __future__ import annotations

import multiprocessing
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adapter_support.clouds import cloud_server
from adapter_support.press import Press
from adapter_support.racing import move_alias
from adapter_support.s3_server import S3Server, s3_server

from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.memory import MemoryStore
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.stores.protocol import Store


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


# A bucket of a real cloud, as for --store, joins in when it is named here.
REAL = os.environ.get("POLYGRAFT_TEST_STORE", "")


@pytest.fixture(params=["local", "memory", "s3", "gs", "az", *(["real"] if REAL else [])])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    if kind == "local":
        yield LocalStore(tmp_path / "store")
        return
    closing: MemoryStore | BucketStore
    if kind == "memory":
        closing = MemoryStore()
    elif kind in ("gs", "az"):
        with cloud_server(kind) as url:
            closing = BucketStore(url, tmp_path / "cache")
            yield closing
            closing.close()
        return
    elif kind == "real":
        closing = BucketStore(f"{REAL}/{uuid.uuid4().hex}", tmp_path / "cache")
    else:
        closing = BucketStore(request.getfixturevalue("s3").bucket(), tmp_path / "cache")
    yield closing
    closing.close()


def test_the_second_create_of_a_key_fails_and_changes_nothing(store: Store) -> None:
    first = b"first"
    assert store.create("a/b", first)
    assert not store.create("a/b", b"second")
    assert not store.create("a/b", first)
    assert store.get("a/b") == first


def test_files_are_stored_as_well_as_bytes(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    assert store.create("blobs/x", source)
    source.write_bytes(b"changed")
    assert store.get("blobs/x") == b"0123456789"
    assert store.size("blobs/x") == 10
    assert store.get("blobs/x", 3) == b"3456789"
    assert store.get("blobs/x", 3, 4) == b"3456"
    assert store.get_path("blobs/x").read_bytes() == b"0123456789"


def test_what_is_absent_is_a_key_error(store: Store) -> None:
    store.create("a/b", b"x")
    for key in ("a", "a/c", "z"):
        with pytest.raises(KeyError):
            store.get(key)
        with pytest.raises(KeyError):
            store.get_path(key)
        with pytest.raises(KeyError):
            store.size(key)


def test_keys_are_listed_in_order_by_prefix_and_after(store: Store) -> None:
    keys = ["log/1", "log/10", "log/2", "log/a/1", "logs/1", "other"]
    for key in reversed(keys):
        store.create(key, b"x")
    assert list(store.list("")) == sorted(keys)
    assert list(store.list("log/")) == ["log/1", "log/10", "log/2", "log/a/1"]
    assert list(store.list("log/1")) == ["log/1", "log/10"]
    assert list(store.list("log/", after="log/10")) == ["log/2", "log/a/1"]
    assert list(store.list("nothing/")) == []


def test_a_deleted_key_is_gone_and_can_be_created_again(store: Store) -> None:
    store.create("a/b", b"x")
    store.get_path("a/b")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    assert list(store.list("")) == []
    with pytest.raises(KeyError):
        store.get("a/b")
    assert store.create("a/b", b"y")
    assert store.get_path("a/b").read_bytes() == b"y"


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "../evil", "a/../../evil", "a//b", "a/", ".hidden", "a/.tmp/x",
     "a\0b", "a\nb", "a b", "ä", "a" * 897, ".tmp/x"],
)  # fmt: skip
def test_keys_that_could_leave_the_store_are_refused(store: Store, key: str) -> None:
    calls: list[Callable[[str], object]] = [
        lambda k: store.create(k, b"x"),
        store.get,
        store.get_path,
        store.delete,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a store key"):
            call(key)


def test_long_keys_and_large_objects_survive(store: Store) -> None:
    key = "/".join(["k" * 99] * 8 + ["last"])
    data = os.urandom(1 << 20) * 8
    assert store.create(key, data)
    assert store.get(key) == data
    assert list(store.list("k")) == [key]


def test_sixteen_threads_racing_for_a_key_have_one_winner(store: Store) -> None:
    barrier = threading.Barrier(16)

    def race(me: int) -> list[int]:
        won = []
        for key in range(50):
            barrier.wait()
            if store.create(f"race/{key}", b"%d" % me):
                won.append(key)
        return won

    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(race, range(16)))
    assert sorted(key for won in wins for key in won) == list(range(50))
    for me, won in enumerate(wins):
        for key in won:
            assert store.get(f"race/{key}") == b"%d" % me


def test_a_prefix_of_one_key_after_another_is_exact(store: Store) -> None:
    keys = [f"log/{number:010d}.json" for number in range(1, 1203)]  # over a page of any cloud
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda key: store.create(key, b"", durable=False), keys))
    assert list(store.list("log/", after="log/0000001200.json")) == [
        "log/0000001201.json",
        "log/0000001202.json",
    ]
    assert list(store.list("log/")) == keys


def test_what_was_created_is_read_at_once(store: Store) -> None:
    for number in range(20):
        key = f"a/{number:02d}"
        store.create(key, b"%d" % number)
        assert store.get(key) == b"%d" % number
        assert list(store.list("a/"))[-1] == key


def test_a_file_of_32_mib_comes_back_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20) * 32)
    for key in ("blobs/sha256/" + "0" * 64, "other/key"):
        assert store.create(key, source)
        assert not store.create(key, source)
        assert store.get_path(key).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["local", "s3", *(["real"] if REAL else [])], indirect=True)
def test_four_processes_racing_for_an_alias_make_one_history(
    store: Store, tmp_path: Path, press: Press
) -> None:
    registry = Registry(store)
    for content in (1, 2):
        press.publish(registry, "sum", content)
    place = store.url if isinstance(store, BucketStore) else str(tmp_path / "store")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        won = pool.starmap(move_alias, [(place, me, 25) for me in range(4)])
    assert sorted(number for mine in won for number in mine) == list(range(2, 102))
    registry.follow()
    history = registry.alias_history("sum", "live")
    assert [move.generation for move in history] == list(range(1, 102))
    assert [move.number for move in history] == [1 + turn % 2 for turn in range(101)]
    for me, mine in enumerate(won):
        assert {history[generation - 1].reason for generation in mine} == {str(me)}
