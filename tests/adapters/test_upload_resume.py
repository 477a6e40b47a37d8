"""Uploads across broken connections, restarts, kills and time: what is kept, believed and swept."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from adapter_support.directories import (
    header_of,
    lora_config,
    lora_tensors,
    push,
    small_geometry,
    write_adapter,
)

from polygraft.adapters.alias_records import AliasMove, Target
from polygraft.adapters.errors import (
    InvalidRequest,
    PolygraftError,
    Unavailable,
    UploadConflict,
    UploadNotFound,
    UploadOutOfRange,
)
from polygraft.adapters.failpoints import activate
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.registry import Registry
from polygraft.adapters.staged_file import RECORD, STRETCH_BYTES
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.upload import Upload, UploadState
from polygraft.adapters.upload_header import UploadHeader
from polygraft.adapters.uploads import Uploads

LIMITS = AdapterLimits()
BIG = 3 * STRETCH_BYTES + 1000  # bytes of README.md: several stretches of the journal


class Node:
    """A server's uploads, which can be stopped or killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uploads = self.start()

    def start(self, limits: AdapterLimits = LIMITS) -> Uploads:
        self.registry = Registry(LocalStore(self.root / "store"))
        self.uploads = Uploads(self.root / "staging", self.registry, small_geometry(), limits)
        return self.uploads

    def stop(self) -> None:
        self.uploads.close()

    def kill(self) -> None:
        """Gives the lock back as the kernel does, and does nothing else."""
        self.uploads._staging._release()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = write_adapter(tmp_path / "a")
    (directory / "README.md").write_bytes(bytes(i % 251 for i in range(BIG)))
    return directory


def header_for(folder: Path, name: str = "sum", **changes: Any) -> UploadHeader:
    header = header_of(find_files(folder), name, allow_unverified_base=True)
    return dataclasses.replace(header, **changes)


def parts_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in find_files(folder).values()]


@contextmanager
def begun(uploads: Uploads, header: UploadHeader) -> Iterator[Upload]:
    upload = uploads.begin(header)
    try:
        yield upload
    finally:
        uploads.end(upload)


def send_rest(uploads: Uploads, folder: Path, name: str = "sum") -> int:
    """What a client does that resumes; how many bytes it had to send."""
    header, sent = header_for(folder, name), 0
    persisted: tuple[int, ...] = (0, 0, 0)
    with suppress(UploadNotFound):
        status = uploads.status(header.id())
        if status.state is UploadState.RECEIVING:
            persisted = status.persisted
    with begun(uploads, header) as upload:
        for index, (data, start) in enumerate(zip(parts_of(folder), persisted, strict=True)):
            for offset in range(start, len(data), 100_000):
                chunk = data[offset : offset + 100_000]
                upload.write(index, offset, chunk)
                sent += len(chunk)
        upload.finish()
    return sent


def send_part(uploads: Uploads, folder: Path, readme_bytes: int, *, chunk: int = 50_000) -> None:
    parts = parts_of(folder)
    with begun(uploads, header_for(folder)) as upload:
        upload.write(0, 0, parts[0])
        for offset in range(0, readme_bytes, chunk):
            upload.write(2, offset, parts[2][offset : min(offset + chunk, readme_bytes)])


def test_a_client_that_comes_back_sends_only_the_rest(node: Node, folder: Path) -> None:
    send_part(node.uploads, folder, 400_000)
    status = node.uploads.status(header_for(folder).id())
    config, weights, readme = map(len, parts_of(folder))
    assert status.state is UploadState.RECEIVING
    assert status.persisted == (config, 0, 400_000)
    assert send_rest(node.uploads, folder) == weights + readme - 400_000
    assert node.registry.resolve("sum").number == 1
    status = node.uploads.status(header_for(folder).id())
    assert status.state is UploadState.PUBLISHED
    assert status.published is not None
    assert status.published.record == node.registry.resolve("sum")


@pytest.mark.parametrize("end", [Node.stop, Node.kill], ids=["stop", "kill"])
def test_a_restart_keeps_what_has_come(
    end: Callable[[Node], None], node: Node, folder: Path
) -> None:
    send_part(node.uploads, folder, 700_000)
    end(node)
    restarted = node.start()
    config, weights, readme = map(len, parts_of(folder))
    persisted = restarted.status(header_for(folder).id()).persisted
    # The journal may lag behind by less than a stretch, never run ahead.
    assert persisted[:2] == (config, 0)
    assert 700_000 - STRETCH_BYTES < persisted[2] <= 700_000
    assert send_rest(restarted, folder) == weights + readme - persisted[2]
    stored = node.registry.files(node.registry.resolve("sum").digest)
    assert stored["README.md"].read_bytes() == parts_of(folder)[2]
    restarted.close()
    assert list((node.root / "staging").iterdir()) == []


def spoil(path: Path, at: int, data: bytes = b"\xff\xfe\xfd") -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


@pytest.mark.parametrize(
    ("file", "at", "most"),
    [
        ("2.part", 10, 0),  # pages lost with the power: the first stretch is not believed
        ("2.part", 2 * STRETCH_BYTES + 70_000, 2 * STRETCH_BYTES + 100_000),
        ("2.journal", 3, 0),
        ("2.journal", RECORD.size + 9, STRETCH_BYTES + 50_000),
        ("0.part", 0, 10**9),
    ],
)
def test_bytes_that_changed_while_no_server_ran_are_asked_for_again(
    node: Node, folder: Path, file: str, at: int, most: int
) -> None:
    send_part(node.uploads, folder, BIG)
    node.kill()
    spoil(next((node.root / "staging").rglob(file)), at)
    restarted = node.start()
    persisted = restarted.status(header_for(folder).id()).persisted
    assert persisted[2] <= most
    assert file != "0.part" or persisted == (0, 0, BIG)
    send_rest(restarted, folder)
    stored = node.registry.files(node.registry.resolve("sum").digest)
    assert [stored[name].read_bytes() for name in find_files(folder)] == parts_of(folder)


def test_a_journal_that_is_longer_than_its_file_is_not_believed(node: Node, folder: Path) -> None:
    send_part(node.uploads, folder, BIG)
    node.kill()
    part = next((node.root / "staging").rglob("2.part"))
    os.truncate(part, STRETCH_BYTES // 2)
    assert node.start().status(header_for(folder).id()).persisted[2] == 0
    send_rest(node.uploads, folder)


def test_many_small_chunks_do_not_grow_the_journal(node: Node, folder: Path) -> None:
    send_part(node.uploads, folder, 60_000, chunk=10)
    assert next((node.root / "staging").rglob("2.journal")).stat().st_size == 0


def test_what_is_no_upload_is_swept_at_the_start(node: Node, folder: Path) -> None:
    send_part(node.uploads, folder, 1000)
    node.kill()
    mine = next(path for path in (node.root / "staging").iterdir() if path.is_dir())
    whole = mine / header_for(folder).id()
    for name, header in (("no-header", None), ("garbage", b"{"), ("other", b"[]")):
        (mine / name).mkdir()
        (mine / name / "0.part").write_bytes(b"x")
        if header is not None:
            (mine / name / "header.json").write_bytes(header)
    (mine / "moved").mkdir()
    (mine / "moved" / "header.json").write_bytes((whole / "header.json").read_bytes())
    restarted = node.start()
    assert restarted.staging_files() == 3
    assert [path.name for path in (node.root / "staging").rglob("header.json")] == ["header.json"]
    send_rest(restarted, folder)
    assert restarted.staging_files() == 0


def test_another_header_under_the_same_id_is_a_conflict(node: Node, folder: Path) -> None:
    mine = header_for(folder, upload_id="mine")
    with begun(node.uploads, mine) as upload:
        for changed in (
            dataclasses.replace(mine, alias="live"),
            dataclasses.replace(mine, name="other"),
            dataclasses.replace(mine, files=mine.files[:2]),
        ):
            with pytest.raises(UploadConflict, match="begun with another header"):
                node.uploads.begin(changed)
        with begun(node.uploads, mine) as again:
            assert again is upload
    assert node.uploads.num_running() == 0


@pytest.mark.parametrize("upload_id", ["../x", "a/b", "", "x" * 129, "a\0b", "ü", "a.b"])
def test_an_upload_id_is_no_path(node: Node, folder: Path, upload_id: str) -> None:
    with pytest.raises(InvalidRequest, match="upload_id"):
        node.uploads.status(upload_id)
    if upload_id:
        with pytest.raises(InvalidRequest, match="upload_id"):
            node.uploads.begin(header_for(folder, upload_id=upload_id))


def test_an_upload_that_nobody_goes_on_with_expires(node: Node, folder: Path) -> None:
    node.stop()
    uploads = node.start(AdapterLimits(upload_idle_seconds=1))
    send_part(uploads, folder, 1000)
    header = header_for(folder)
    assert uploads.sweep() == 0
    uploads._unfinished[header.id()]._touched_at -= 2
    with begun(uploads, header):
        assert uploads.sweep() == 0  # somebody has come back
    uploads._unfinished[header.id()]._touched_at -= 2
    assert uploads.sweep() == 1
    assert uploads.staging_files() == 0
    expired = uploads.status(header.id())
    assert (expired.state, expired.persisted) == (UploadState.EXPIRED, (0, 0, 0))
    send_rest(uploads, folder)
    assert uploads.status(header.id()).state is UploadState.PUBLISHED


def test_the_time_that_no_server_ran_counts_as_idle(node: Node, folder: Path) -> None:
    send_part(node.uploads, folder, 1000)
    node.kill()
    for path in next((node.root / "staging").rglob("header.json")).parent.iterdir():
        os.utime(path, (0, 0))
    restarted = node.start()
    assert restarted.sweep() == 1
    with pytest.raises(UploadOutOfRange), begun(restarted, header_for(folder)) as upload:
        upload.write(0, 5, b"x")


def test_content_that_the_name_has_needs_no_bytes(node: Node, folder: Path) -> None:
    header = header_for(folder)
    assert node.uploads.published(header) is None
    first = push(node.uploads, folder, "sum")
    known = node.uploads.published(header)
    assert known is not None
    assert known.record == first.record
    assert "already published as number 1" in known.warnings[0]
    assert known.alias is None
    aliased = node.uploads.published(dataclasses.replace(header, alias="canary"))
    again = node.uploads.published(dataclasses.replace(header, alias="canary"))
    assert aliased is not None
    assert again is not None
    assert aliased.alias == again.alias  # not moved a second time
    assert node.uploads.published(dataclasses.replace(header, name="other")) is None
    other = write_adapter(folder.parent / "b", lora_config(lora_alpha=9), lora_tensors())
    assert node.uploads.published(header_for(other)) is None


def test_a_publish_that_was_cut_off_before_its_alias_is_completed(node: Node, folder: Path) -> None:
    activate("alias.record=error@1")
    with pytest.raises(OSError, match=r"alias\.record"):
        push(node.uploads, folder, "sum")
    activate(None)
    assert node.registry.live("sum") is None
    assert [record.number for record in node.registry.versions("sum")] == [1]
    assert node.uploads.published(header_for(folder)) is None
    assert send_rest(node.uploads, folder) == 0  # the bytes were kept
    live = node.registry.live("sum")
    assert live is not None
    assert live.number == 1


def test_an_alias_that_is_split_is_made_whole(node: Node, folder: Path) -> None:
    other = write_adapter(folder.parent / "b", lora_config(lora_alpha=9), lora_tensors())
    one = push(node.uploads, folder, "sum", alias="canary").record
    two = push(node.uploads, other, "sum").record
    targets = (Target(one.digest, 1, 9000), Target(two.digest, 2, 1000))
    node.registry.write_alias("sum", "canary", AliasMove(targets))
    header = dataclasses.replace(header_for(folder), alias="canary")
    known = node.uploads.published(header)
    assert known is not None
    assert known.alias is not None
    assert [target.number for target in known.alias.targets] == [1]


def test_content_that_has_rotted_is_asked_for_again(node: Node, folder: Path) -> None:
    digest = push(node.uploads, folder, "sum").record.digest
    spoil(node.registry.files(digest)["README.md"], 0)
    assert node.uploads.published(header_for(folder)) is None
    send_rest(node.uploads, folder)
    stored = node.registry.files(digest)
    assert stored["README.md"].read_bytes() == parts_of(folder)[2]


def test_an_error_that_is_no_refusal_keeps_the_bytes(
    node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise Unavailable("not now.")

    with monkeypatch.context() as patch:
        patch.setattr(node.uploads, "_validate", unable)
        with pytest.raises(Unavailable):
            send_rest(node.uploads, folder)
    assert node.uploads.status(header_for(folder).id()).state is UploadState.RECEIVING
    assert send_rest(node.uploads, folder) == 0


def leave_staging_behind(root: Path, folder: Path) -> None:
    """What a server does that is killed during an upload."""
    send_part(Node(root).uploads, folder, 600_000)
    os._exit(9)


def test_staging_of_a_killed_process_is_taken_over_and_that_of_a_living_one_is_not(
    tmp_path: Path, folder: Path
) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=leave_staging_behind, args=(tmp_path, folder)
    )
    process.start()
    process.join()
    one = Node(tmp_path)
    two = Node(tmp_path)
    assert (one.uploads.staging_files(), two.uploads.staging_files()) == (3, 0)
    with pytest.raises(UploadNotFound):
        two.uploads.status(header_for(folder).id())
    assert send_rest(one.uploads, folder) < sum(map(len, parts_of(folder))) - 300_000
    one.stop()
    two.stop()
    assert list((tmp_path / "staging").iterdir()) == []


def test_refusals_are_told_until_the_upload_begins_again(node: Node, tmp_path: Path) -> None:
    bad = write_adapter(tmp_path / "bad", lora_config(r=3))
    header = header_of(find_files(bad), "sum", allow_unverified_base=True)
    with pytest.raises(PolygraftError):
        push(node.uploads, bad, "sum")
    status = node.uploads.status(header.id())
    assert status.state is UploadState.REJECTED
    assert status.refusal is not None
    assert status.refusal.code == "ADAPTER_INVALID"
    with begun(node.uploads, header):
        assert node.uploads.status(header.id()).state is UploadState.RECEIVING
