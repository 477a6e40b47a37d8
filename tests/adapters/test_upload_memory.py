"""A large upload takes a few chunks of memory on either side, however large it is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from adapter_support.directories import small_geometry, write_adapter

from polygraft.adapters.chunks import CHUNK_BYTES
from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import WEIGHTS_FILE
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.memory import MemoryStore
from polygraft.adapters.uploads import FileDeclaration, UploadHeader, Uploads
from polygraft.client.download import Download
from polygraft.client.upload import UploadSource
from polygraft.protos import adapters_pb2 as pb

SIZE = 48 * CHUNK_BYTES
FEW = 4 * CHUNK_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter whose weights are a hole of 48 MiB."""
    directory = write_adapter(tmp_path / "a")
    with (directory / WEIGHTS_FILE).open("r+b") as stream:
        stream.truncate(SIZE)
    return directory


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """AssertionError if Python held more at any moment; messages of protobuf are not Python's."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / CHUNK_BYTES:.1f} MiB"


def test_a_client_reads_one_chunk_at_a_time(folder: Path) -> None:
    with at_most(FEW):
        source = UploadSource.open(folder)
        messages = source.messages(source.header("sum"), {})
        sent = sum(len(message.chunk.data) for message in messages)
    assert sent > SIZE


def test_a_server_keeps_no_chunk_and_reads_none_of_them_again_as_a_whole(
    folder: Path, tmp_path: Path
) -> None:
    store = MemoryStore()
    registry = Registry(store)
    source = UploadSource.open(folder)
    files = tuple(FileDeclaration(f.name, f.size_bytes, f.sha256) for f in source.declarations)
    header = UploadHeader("sum", files, allow_unverified_base=True)
    uploads = Uploads(tmp_path / "staging", registry, small_geometry(), AdapterLimits())
    with at_most(FEW):
        upload = uploads.begin(header)
        for message in source.messages(source.header("sum"), {}):
            if message.HasField("chunk"):
                chunk = message.chunk
                upload.write(chunk.file_index, chunk.offset_bytes, chunk.data, chunk.crc32c)
        uploads.end(upload)
        uploads.close()
    uploads = Uploads(tmp_path / "staging", registry, small_geometry(), AdapterLimits())
    with at_most(FEW):
        status = uploads.status(header.id())  # after a restart: hashed again
        assert sum(status.persisted) > SIZE
        upload = uploads.begin(header)
        with pytest.raises(AdapterInvalid):  # there is more in the file than its header says
            upload.finish()
        uploads.end(upload)
    uploads.close()
    store.close()


def test_a_download_is_written_as_it_comes(folder: Path, tmp_path: Path) -> None:
    source = UploadSource.open(folder)
    header = pb.DownloadHeader(files=source.declarations)
    header.version.manifest_json = "{}"
    header.version.digest = (
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    )
    with at_most(FEW), Download(tmp_path / "back") as download:
        download.add(pb.DownloadAdapterResponse(header=header))
        for message in source.messages(source.header("sum"), {}):
            if message.HasField("chunk"):
                download.add(pb.DownloadAdapterResponse(chunk=message.chunk))
        download.finish()
    assert (tmp_path / "back" / WEIGHTS_FILE).stat().st_size == SIZE
