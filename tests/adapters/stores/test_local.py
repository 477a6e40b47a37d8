"""What only a disk can lose: power, space, processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polygraft.adapters.errors import Overloaded
from polygraft.adapters.stores.local import LocalStore


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
from polygraft.adapters.stores.local import LocalStore
activate("store.link=kill")
LocalStore(Path(sys.argv[1])).create("b", b"never seen")
"""
WRITER = """
import sys
from pathlib import Path
from polygraft.adapters.stores.local import LocalStore
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
