"""`kill -9` at every failpoint of an upload, its publish and an alias move.

`POLYGRAFT_CRASHES=50` kills that often at each of them; the suite does it a few times.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from adapter_support.directories import lora_config, push, small_geometry, write_adapter

from polygraft.adapters.failpoints import FAILPOINTS, activate
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.uploads import Uploads

CRASHES = int(os.environ.get("POLYGRAFT_CRASHES", "2"))
TURNS = 20  # uploads that a process makes at most
# How often a point is passed by one upload differs, so a kill lands in different uploads.
HITS = (1, 2, 5, 9, 14)


@dataclass
class Acknowledged:
    """What the killed processes had said was done."""

    versions: dict[int, str] = field(default_factory=dict)
    moves: dict[int, int] = field(default_factory=dict)  # generation of `live` -> number

    def take(self, reply: tuple[str, int, str | int]) -> None:
        kind, number, value = reply
        if kind == "version":
            self.versions[number] = str(value)
        else:
            self.moves[number] = int(value)


def open_uploads(root: Path) -> tuple[Registry, Uploads]:
    registry = Registry(LocalStore(root / "store"))
    return registry, Uploads(root / "staging", registry, small_geometry(), AdapterLimits())


def work_until_killed(root: Path, rule: str, start: int, replies: Connection) -> None:
    """Upload, publish and promote, one after the other, and say so each time."""
    activate(rule)
    registry, uploads = open_uploads(root)
    for turn in range(start, start + TURNS):
        directory = write_adapter(root / f"content-{turn}", lora_config(lora_alpha=turn + 1))
        published = push(uploads, directory, "sum", alias="live")
        replies.send(("version", published.record.number, published.record.digest))
        live = registry.live("sum")
        assert live is not None
        replies.send(("move", live.generation, live.number))
        if (number := turn % len(registry.versions("sum")) + 1) != live.number:
            moved = registry.move_alias("sum", "live", number, reason="turn")
            replies.send(("move", moved.generation, moved.number))
    os._exit(17)  # never killed: the test wants to know


def crash(root: Path, rule: str, start: int, acknowledged: Acknowledged) -> int | None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=work_until_killed, args=(root, rule, start, sender)
    )
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
        while True:
            acknowledged.take(receiver.recv())
    process.join()
    receiver.close()
    return process.exitcode


def check(root: Path, acknowledged: Acknowledged) -> None:
    registry, uploads = open_uploads(root)
    registry.check_integrity()
    for number, digest in acknowledged.versions.items():
        assert registry.version("sum", number).digest == digest
    history = registry.alias_history("sum", "live")
    assert [move.generation for move in history] == list(range(1, len(history) + 1))
    for generation, number in acknowledged.moves.items():
        assert history[generation - 1].number == number
    for move in history:
        assert registry.version("sum", move.number).digest == move.digest
    if history:
        for record in registry.versions("sum"):
            assert registry.files(record.digest)  # whole, acknowledged or not
    assert not list((root / "store" / ".tmp").glob("*/*"))
    assert len(list((root / "staging").glob("*.lock"))) == 1  # of dead processes nothing is left
    uploads.close()


@pytest.mark.parametrize(
    "name", [name for name in FAILPOINTS if name.startswith(("upload.", "publish.", "alias."))
             or name in ("store.open", "store.write", "store.fsync_file", "store.link",
                         "store.fsync_directory")]
)  # fmt: skip
def test_a_kill_at_any_step_loses_nothing_and_shows_nothing_half(name: str, tmp_path: Path) -> None:
    acknowledged, slowest = Acknowledged(), 0.0
    for round_ in range(CRASHES):
        hit = HITS[round_ % len(HITS)]
        assert crash(tmp_path, f"{name}=kill@{hit}", round_ * TURNS, acknowledged) == -9, hit
        started = time.monotonic()
        check(tmp_path, acknowledged)
        slowest = max(slowest, time.monotonic() - started)
    print(
        f"{name}: {CRASHES} kills, {len(acknowledged.versions)} versions and "
        f"{len(acknowledged.moves)} moves acknowledged, slowest check {slowest:.2f} s"
    )
    for path in (tmp_path / "staging").rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)
    registry, uploads = open_uploads(tmp_path)
    known = registry.num_versions("sum") if registry.names() else 0
    assert uploads.sweep() <= CRASHES  # what nobody went on with
    for directory in sorted(tmp_path.glob("content-*")):  # what was cut can be repeated
        push(uploads, directory, "sum", alias="live")
    assert known <= registry.num_versions("sum") == len(list(tmp_path.glob("content-*")))
    assert uploads.staging_files() == 0
    uploads.close()
