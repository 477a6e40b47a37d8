"""Where bytes of uploads wait until they are published: a locked directory per process.

<root>/<process>/<upload id>/header.json, 0.part, 0.journal, 1.part ...

The lock of a process is dropped by the kernel when it dies, however it dies; the next process
takes over the uploads it left, so that they can be resumed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polygraft.adapters.errors import InvalidRequest, Overloaded, Unavailable
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.staged_file import StagedFile
from polygraft.adapters.upload_header import FileDeclaration, UploadHeader, check_upload_id

logger = logging.getLogger(__name__)

HEADER_FILE = "header.json"


class Staging:
    """This process's folder under `root`, with the uploads of dead processes moved into it."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        self._folder = root / name
        # Why the lock before the folder: others take over folders whose lock they can take.
        self._lock_file = root / f"{name}.lock"
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._folder.mkdir()
        self._release = weakref.finalize(self, os.close, descriptor)
        _take_over(root, self._folder)

    def found(self) -> Iterator[StagedUpload]:
        """The uploads that dead processes left. What is no whole upload is removed."""
        for folder in sorted(self._folder.iterdir()):
            try:
                yield StagedUpload(folder, _read_header(folder), needs_recovery=True)
            except (OSError, ValueError, TypeError, KeyError, InvalidRequest) as error:
                logger.warning("staging: %s is removed: %s", folder.name, error)
                shutil.rmtree(folder, ignore_errors=True)

    def open(self, header: UploadHeader) -> StagedUpload:
        """Reserves space for all files at once; Overloaded (STORAGE_FULL) when there is none."""
        staged = StagedUpload(self._folder / header.id(), header)
        staged.create()
        return staged

    def num_files(self) -> int:
        """Files staged now."""
        return sum(path.suffix == ".part" for path in self._folder.rglob("*"))

    def close(self) -> None:
        """Leaves what is unfinished to the next process."""
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()
            self._lock_file.unlink(missing_ok=True)
        self._release()


class StagedUpload:
    """The header and the files of one upload on disk. Not thread-safe."""

    def __init__(self, folder: Path, header: UploadHeader, *, needs_recovery: bool = False) -> None:
        self.header = header
        self._folder = folder
        self._needs_recovery = needs_recovery
        self.files = [
            StagedFile(folder / f"{index}.part", file) for index, file in enumerate(header.files)
        ]

    def create(self) -> None:
        """Makes the files. The header last: a folder without one is no upload."""
        self._folder.mkdir()
        try:
            with storage_full_told(self.header.size()):
                for file in self.files:
                    file.create()
                failpoint("upload.open")
                _write_durably(self._folder / HEADER_FILE, _header_bytes(self.header))
        except BaseException:
            self.remove()
            raise

    def recover(self) -> None:
        """Reads again what a process before this one has received; once, and only then."""
        if self._needs_recovery:
            for file in self.files:
                file.recover()
            self._needs_recovery = False

    def age(self) -> float:
        """Seconds since bytes came last, by the files' times."""
        newest = max(path.stat().st_mtime for path in self._folder.iterdir())
        return max(0.0, time.time() - newest)

    def write(self, file_index: int, offset: int, data: bytes) -> None:
        """Takes a chunk; see `StagedFile.write`. InvalidRequest for a file that is not declared."""
        if not 0 <= file_index < len(self.files):
            raise InvalidRequest(
                f"the upload has no file {file_index}.",
                reason="INVALID_UPLOAD",
                item="chunk.file_index",
                found=file_index,
                allowed=f"0..{len(self.files) - 1}",
            )
        with storage_full_told(len(data)):
            failpoint("upload.chunk")
            self.files[file_index].write(offset, data)

    def check_sizes(self) -> None:
        """UploadCorrupt (UPLOAD_INCOMPLETE) while bytes are missing."""
        for file in self.files:
            file.check_size()

    def checked_files(self) -> dict[str, Path]:
        """Name -> path when every file is what was declared, else UploadCorrupt."""
        for file in self.files:
            file.check_sha256()
        return {file.declaration.name: file.path for file in self.files}

    def close(self) -> None:
        """Gives descriptors back until the next write."""
        for file in self.files:
            file.close()

    def remove(self) -> None:
        """Deletes the staged bytes; again is fine."""
        self.close()
        # Why the header first: a kill in between leaves a folder that is no upload any more.
        (self._folder / HEADER_FILE).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def storage_full_told(size: int) -> Iterator[None]:
    """A full disk becomes Overloaded (STORAGE_FULL), one that fails Unavailable."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"the disk for uploads failed: {error.strerror or error}.",
                reason="STORE_UNAVAILABLE",
                hint="Look into the server's log, then upload again.",
            ) from error
        raise Overloaded(
            "the disk of the server has no room for the upload.",
            reason="STORAGE_FULL",
            item="files",
            found=size,
            hint="Free space under the store, then upload again.",
        ) from error


def _header_bytes(header: UploadHeader) -> bytes:
    return json.dumps(asdict(header)).encode()


def _read_header(folder: Path) -> UploadHeader:
    """ValueError and the like when the folder does not hold an upload of this form."""
    value: dict[str, Any] = json.loads((folder / HEADER_FILE).read_bytes())
    files = tuple(FileDeclaration(**file) for file in value.pop("files"))
    header = UploadHeader(files=files, **value)
    if check_upload_id(header.id()) != folder.name:
        raise ValueError(f"its header is that of {header.id()}")
    if missing := [i for i in range(len(files)) if not (folder / f"{i}.part").is_file()]:
        raise ValueError(f"files {missing} are missing")
    return header


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)


def _take_over(root: Path, mine: Path) -> None:
    """Moves uploads of dead processes under `mine`; of two with one id the first is kept."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path != mine):
        lock_file = root / f"{folder.name}.lock"
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process lives
        else:
            for upload in folder.iterdir() if folder.is_dir() else ():
                if upload.is_dir() and not (mine / upload.name).exists():
                    upload.rename(mine / upload.name)
            shutil.rmtree(folder, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
