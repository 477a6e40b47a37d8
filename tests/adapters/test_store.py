"""One conformance suite for every store; then what only a disk can lose."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polygraft.adapters.errors import Overloaded
from polygraft.adapters.store import LocalStore, MemoryStore, Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
    else:
        memory = MemoryStore()
        yield memory
        memory.close()


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
     "a\0b", "a\nb", "a b", "ä", "a" * 1025, ".tmp/x"],
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
    key = "/".join(["k" * 100] * 10)
    data = os.urandom(1 << 20) * 8
    assert store.create(key, data)
    assert store.get(key) == data
    assert list(store.list("k")) == [key]


def test_sixteen_threads_racing_for_a_key_have_one_winner(store: Store) -> None:
    barrier = threading.Barrier(16)

    def race(me: int) -> list[int]:
        won = []
        for key in range(25):
            barrier.wait()
            if store.create(f"race/{key}", b"%d" % me):
                won.append(key)
        return won

    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(race, range(16)))
    assert sorted(key for won in wins for key in won) == list(range(25))
    for me, won in enumerate(wins):
        for key in won:
            assert store.get(f"race/{key}") == b"%d" % me


def test_a_local_store_keeps_everything_when_opened_again(tmp_path: Path) -> None:
    LocalStore(tmp_path).create("a/b", b"x")
    again = LocalStore(tmp_path)
    assert again.get("a/b") == b"x"
    assert not again.create("a/b", b"y")


def test_temporary_files_of_dead_processes_are_swept_and_those_of_living_ones_left(
    tmp_path: Path,
) -> None:
    living = LocalStore(tmp_path)
    living.create("a", b"x")
    [used] = (path for path in (tmp_path / ".tmp").iterdir() if path.is_dir())
    (used / "half").touch()
    command = [sys.executable, "-P", "-c", DIES_WITH_A_FILE, str(tmp_path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(list((tmp_path / ".tmp").glob("*/*"))) == 2
    store = LocalStore(tmp_path)
    assert list((tmp_path / ".tmp").glob("*/*")) == [used / "half"]
    assert list(store.list("")) == ["a"]


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_create_that_fails_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.create("a/first", b"x")

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        source = tmp_path / "source"
        source.write_bytes(b"y")
        patch.setattr(os, call, fail)
        with pytest.raises(Overloaded, match="full") as caught:
            store.create("a/b", source)
    assert caught.value.code == "STORAGE_FULL"
    assert list(store.list("")) == ["a/first", "source"]
    assert list((tmp_path / ".tmp").glob("*/*")) == []
    assert store.create("a/b", b"z")


def test_a_create_syncs_the_file_before_the_link_and_the_directories_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store")
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def recorded_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        is_file = path.parent.parent.name == ".tmp"
        events.append("fsync file" if is_file else f"fsync {path.relative_to(tmp_path)}")
        fsync(descriptor)

    def recorded_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "link", recorded_link)
    store.create("x/y/a", b"1")
    assert events == [
        "fsync store/x/y", "fsync store/x", "fsync store", "fsync .",
        "fsync file", "link", "fsync store/x/y",
    ]  # fmt: skip
    events.clear()
    store.create("x/y/a", b"2")  # "it exists" must be durable too
    assert events == ["fsync file", "link", "fsync store/x/y"]


DIES_WITH_A_FILE = """
import sys
from pathlib import Path
from polygraft.adapters.failpoints import activate
from polygraft.adapters.store import LocalStore
activate("store.link=kill")
LocalStore(Path(sys.argv[1])).create("b", b"never seen")
"""
WRITER = """
import sys
from pathlib import Path
from polygraft.adapters.store import LocalStore
store = LocalStore(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10_000):
    data = b"%d" % number * 2000
    store.create(f"log/{number:05d}", data)
    print(number, flush=True)
"""


def test_every_acknowledged_create_survives_kill_9(tmp_path: Path) -> None:
    acknowledged = -1
    for round_ in range(6):
        command = [sys.executable, "-P", "-c", WRITER, str(tmp_path), str(acknowledged + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3 + 5 * round_):
            acknowledged = int(process.stdout.readline())
        time.sleep(0.0013 * round_)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
    store = LocalStore(tmp_path)
    keys = list(store.list("log/"))
    assert keys[: acknowledged + 1] == [f"log/{n:05d}" for n in range(acknowledged + 1)]
    for number, key in enumerate(keys):
        assert store.get(key) == b"%d" % number * 2000  # never half a file, acknowledged or not
