"""Writing a downloaded version into a directory: whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from polygraft.adapters.canonical import sha256_digest
from polygraft.adapters.chunks import check_chunk
from polygraft.adapters.errors import InvalidRequest, UploadCorrupt
from polygraft.adapters.files import ALLOWED_FILES, MANIFEST_FILE
from polygraft.client.results import AdapterVersion
from polygraft.client.upload import Progress
from polygraft.protos import adapters_pb2 as pb

_NAMES = frozenset(ALLOWED_FILES) - {MANIFEST_FILE}


class Download:
    """One attempt. Used in `with`; `finish` puts the files in place, leaving removes them.

    Raises InvalidRequest when `directory` holds something already, and UploadCorrupt for bytes
    that are not those of the version.
    """

    def __init__(self, directory: Path, progress: Progress | None = None) -> None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InvalidRequest(
                f"{directory} exists and is not empty.",
                item="directory",
                found=str(directory),
                hint="Give a directory that does not exist.",
            )
        self._directory = directory
        self._partial = directory.absolute().with_name(f".{directory.name}.{uuid.uuid4().hex}")
        self._partial.mkdir(parents=True)
        self._progress = progress
        self._header: pb.DownloadHeader | None = None
        self._streams: list[BinaryIO] = []
        self._sha256 = [hashlib.sha256()]
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._streams:
            stream.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, message: pb.DownloadAdapterResponse) -> None:
        """The header first, then chunk after chunk."""
        if message.WhichOneof("part") == "header" and self._header is None:
            self._begin(message.header)
        elif message.WhichOneof("part") == "chunk" and self._header is not None:
            self._append(self._header, message.chunk)
        else:
            raise _corrupt("messages came out of order.")

    def finish(self) -> AdapterVersion:
        """The files are complete and what the manifest says; now they have their place."""
        header = self._header
        if header is None:
            raise _corrupt("nothing came.")
        for index, file in enumerate(header.files):
            if self._streams[index].tell() != file.size_bytes:
                raise _corrupt(f"{file.name} is not complete.")
            if self._sha256[index].hexdigest() != file.sha256:
                raise _corrupt(f"{file.name} has another sha256 than its manifest says.")
        manifest = header.version.manifest_json.encode()
        (self._partial / MANIFEST_FILE).write_bytes(manifest)
        for stream in self._streams:
            stream.close()
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self._partial, self._directory)  # onto nothing or an empty directory
        return AdapterVersion.read(header.version)

    def _begin(self, header: pb.DownloadHeader) -> None:
        if sha256_digest(header.version.manifest_json.encode()) != header.version.digest:
            raise _corrupt("the manifest does not have the digest of the version.")
        names = [file.name for file in header.files]
        # Why: a server is not to choose where this process writes.
        if len(set(names)) != len(names) or not set(names) <= _NAMES:
            raise _corrupt(f"{', '.join(names)[:200]!r} are not the files of an adapter.")
        self._header = header
        self._sha256 = [hashlib.sha256() for _ in names]
        self._streams = [(self._partial / name).open("xb") for name in names]

    def _append(self, header: pb.DownloadHeader, chunk: pb.FileChunk) -> None:
        if not 0 <= chunk.file_index < len(self._streams):
            raise _corrupt(f"a chunk is of file {chunk.file_index}, which there is not.")
        file, stream = header.files[chunk.file_index], self._streams[chunk.file_index]
        check_chunk(chunk.data, chunk.crc32c, file=file.name, offset=chunk.offset_bytes)
        if chunk.offset_bytes != stream.tell():
            raise _corrupt(f"a chunk of {file.name} is missing.")
        if chunk.offset_bytes + len(chunk.data) > file.size_bytes:
            raise _corrupt(f"{file.name} is longer than its manifest says.")
        stream.write(chunk.data)
        self._sha256[chunk.file_index].update(chunk.data)
        self._received += len(chunk.data)
        if self._progress is not None:
            self._progress(self._received, sum(file.size_bytes for file in header.files))


def _corrupt(what: str) -> UploadCorrupt:
    return UploadCorrupt(what, reason="DOWNLOAD_CORRUPT", hint="Download it again.")
