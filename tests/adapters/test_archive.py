"""Versions as one file: the same bytes every time, and nothing else is read."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_support.directories import small_geometry, write_adapter

from polygraft.adapters.archive import read_archive, write_archive
from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import canonical_json, minimal_manifest, record_files
from polygraft.adapters.weights import read_adapter


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A directory with a manifest, as a download leaves it."""
    folder = write_adapter(tmp_path / "version")
    files = find_files(folder)
    weights = read_adapter(files, small_geometry(), AdapterLimits(), dtype=torch.float32)
    manifest = minimal_manifest(files, weights, record_files(files))
    (folder / MANIFEST_FILE).write_bytes(canonical_json(manifest))
    return folder


def archive_of(folder: Path) -> bytes:
    target = io.BytesIO()
    sha256 = write_archive(folder, target)
    assert sha256 == hashlib.sha256(target.getvalue()).hexdigest()
    return target.getvalue()


def read(data: bytes, directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    return read_archive(io.BytesIO(data), directory)


def test_what_is_written_is_read_and_gives_the_same_archive(version: Path, tmp_path: Path) -> None:
    data = archive_of(version)
    digest = read(data, tmp_path / "read")
    manifest = (version / MANIFEST_FILE).read_bytes()
    assert digest == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    for path in version.iterdir():
        assert (tmp_path / "read" / path.name).read_bytes() == path.read_bytes()
        path.touch()
    assert archive_of(version) == archive_of(tmp_path / "read") == data


def test_an_archive_is_a_tar_that_others_can_list(version: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive_of(version)), mode="r:") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
        extracted = tar.extractfile(WEIGHTS_FILE)
        assert extracted is not None
        assert extracted.read() == (version / WEIGHTS_FILE).read_bytes()


def test_files_that_are_not_what_the_manifest_says_are_not_exported(version: Path) -> None:
    (version / CONFIG_FILE).write_bytes((version / CONFIG_FILE).read_bytes() + b" ")
    with pytest.raises(AdapterInvalid, match="has other bytes than the manifest says"):
        archive_of(version)


def test_no_changed_byte_is_accepted(version: Path, tmp_path: Path) -> None:
    """The manifest's own bytes are its identity: another manifest is another version."""
    data = archive_of(version)
    digest = read(data, tmp_path / "whole")
    begin, end = 512, 512 + (version / MANIFEST_FILE).stat().st_size
    random.seed(5)
    for at in {*range(0, 512, 7), *random.sample(range(len(data)), 600), len(data) - 1}:
        changed = bytearray(data)
        changed[at] ^= 1 << random.randrange(8)
        directory = tmp_path / str(at)
        try:
            found = read(bytes(changed), directory)
        except AdapterInvalid:
            continue
        assert begin <= at < end
        assert found != digest


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: data + bytes(512),
        lambda data: data + data,
        lambda data: data[:-1024],
    ],
)
def test_truncated_and_longer_archives_are_refused(
    spoil: Callable[[bytes], bytes], version: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterInvalid) as caught:
        read(spoil(archive_of(version)), tmp_path / "read")
    assert caught.value.code == "ARCHIVE_INVALID"


def tar_of(version: Path, change: Callable[[list[tarfile.TarInfo]], None]) -> bytes:
    """The archive as `tarfile` writes it, after a change of its members."""
    names = [MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE]
    members = []
    for name in names:
        info = tarfile.TarInfo(name)
        info.size = (version / name).stat().st_size
        members.append(info)
    content = {info: (version / info.name).read_bytes() for info in members}
    change(members)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(content.get(info, b"x" * info.size)))
    return target.getvalue()


def link(kind: bytes) -> Callable[[list[tarfile.TarInfo]], None]:
    def change(members: list[tarfile.TarInfo]) -> None:
        members[1].type, members[1].linkname, members[1].size = kind, "/etc/passwd", 0

    return change


def renamed(name: str) -> Callable[[list[tarfile.TarInfo]], None]:
    def change(members: list[tarfile.TarInfo]) -> None:
        members[1].name = name

    return change


@pytest.mark.parametrize(
    "change",
    [
        link(tarfile.SYMTYPE),
        link(tarfile.LNKTYPE),
        link(tarfile.FIFOTYPE),
        link(tarfile.CHRTYPE),
        link(tarfile.DIRTYPE),
        renamed("../adapter_config.json"),
        renamed("/tmp/adapter_config.json"),
        renamed("x/" * 200),
        lambda members: members.reverse(),
        lambda members: members.append(tarfile.TarInfo("evil")),
        lambda members: members.insert(1, tarfile.TarInfo(CONFIG_FILE)),
        lambda members: setattr(members[0], "mtime", 1),
        lambda members: setattr(members[2], "mode", 0o4755),
        lambda members: setattr(members[2], "uname", "root"),
    ],
)
def test_other_tars_are_refused(
    change: Callable[[list[tarfile.TarInfo]], None], version: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "read"
    with pytest.raises(AdapterInvalid) as caught:
        read(tar_of(version, change), directory)
    assert caught.value.code == "ARCHIVE_INVALID"
    assert "export" in str(caught.value)
    assert {path.name for path in directory.iterdir()} <= {CONFIG_FILE, WEIGHTS_FILE}


@pytest.mark.parametrize(
    "files",
    [
        b'[{"name":"../x","sha256":"","size":1}]',
        b'[{"name":"manifest.json","sha256":"","size":1}]',
        b'[{"name":"README.md","sha256":"","size":-1}]',
        b'[{"name":"README.md","sha256":"","size":true}]',
        b'[{"name":["README.md"],"sha256":"","size":1}]',
        b'[{"name":"README.md","sha256":"","size":1},{"name":"README.md","sha256":"","size":1}]',
        b'[{"name":"README.md"}]',
        b'["README.md"]',
        b"[]",
        b"{}",
    ],
)
def test_manifests_that_list_what_no_adapter_has_are_refused(files: bytes, tmp_path: Path) -> None:
    manifest = b'{"files":' + files + b"}"
    info = tarfile.TarInfo(MANIFEST_FILE)
    info.size = len(manifest)
    data = info.tobuf(tarfile.GNU_FORMAT) + manifest + bytes(-len(manifest) % 512) + bytes(1024)
    with pytest.raises(AdapterInvalid) as caught:
        read(data, tmp_path / "read")
    assert caught.value.code == "ARCHIVE_INVALID"
    assert list((tmp_path / "read").iterdir()) == []
