"""Where bytes of uploads wait until they are published: a locked directory, swept when abandoned.

Every server process has its own folder beside others', held by a file lock that the kernel drops
when the process dies, however it dies.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import uuid
import weakref
from pathlib import Path

from polygraft.adapters.errors import InvalidRequest, Overloaded, UploadCorrupt
from polygraft.adapters.upload_header import FileDeclaration


class Staging:
    """This process's folder under `root`. Abandoned folders of dead processes are removed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        name = uuid.uuid4().hex
        self._folder = root / name
        # Why the lock before the folder: a sweeper removes folders whose lock it can take.
        self._lock_file = root / f"{name}.lock"
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._folder.mkdir()
        self._release = weakref.finalize(self, os.close, descriptor)

    def open(self, files: tuple[FileDeclaration, ...]) -> StagedUpload:
        """Reserves space for all files at once; Overloaded (STORAGE_FULL) when there is none."""
        return StagedUpload(self._folder / uuid.uuid4().hex, files)

    def num_files(self) -> int:
        """Files staged now."""
        return sum(path.is_file() for path in self._folder.rglob("*"))

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)
        self._release()


class StagedUpload:
    """The files of one upload. Thread-safe; every method but `remove` is over after it."""

    def __init__(self, folder: Path, files: tuple[FileDeclaration, ...]) -> None:
        self._lock = threading.Lock()
        self._folder = folder
        self._removed = False
        folder.mkdir()
        self._files: list[StagedFile] = []
        try:
            for index, declaration in enumerate(files):
                self._files.append(StagedFile(folder / f"{index}.part", declaration))
        except OSError as error:
            self.remove()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Overloaded(
                "the disk of the server has no room for the upload.",
                reason="STORAGE_FULL",
                item="files",
                found=sum(file.size for file in files),
                hint="Free space under the store, then upload again.",
            ) from error

    def write(self, file_index: int, offset: int, data: bytes) -> None:
        """Appends bytes to one file; InvalidRequest or UploadCorrupt when they do not belong."""
        with self._lock:
            if self._removed:
                raise InvalidRequest("the upload has ended.", reason="UPLOAD_ENDED")
            if not 0 <= file_index < len(self._files):
                raise InvalidRequest(
                    f"the upload has no file {file_index}.",
                    reason="INVALID_UPLOAD",
                    item="file_index",
                    found=file_index,
                    allowed=f"0..{len(self._files) - 1}",
                )
            self._files[file_index].append(offset, data)

    def complete(self) -> dict[str, Path]:
        """Name -> path when every file has its declared size and sha256, else UploadCorrupt."""
        with self._lock:
            for file in self._files:
                file.check()
            return {file.declaration.name: file.path for file in self._files}

    def remove(self) -> None:
        """Deletes the staged bytes; again is fine."""
        with self._lock:
            self._removed = True
            for file in self._files:
                file.close()
            shutil.rmtree(self._folder, ignore_errors=True)


class StagedFile:
    """One file being received, hashed as it comes."""

    def __init__(self, path: Path, declaration: FileDeclaration) -> None:
        self.path = path
        self.declaration = declaration
        self._sha256 = hashlib.sha256()
        self._received = 0
        self._stream = path.open("xb", buffering=0)
        try:
            # Why: a full disk is met before the bytes are sent, not after.
            os.posix_fallocate(self._stream.fileno(), 0, declaration.size)
        except OSError:
            self._stream.close()
            raise

    def append(self, offset: int, data: bytes) -> None:
        """Writes the next bytes; they must follow what was received and fit the size."""
        if offset != self._received:
            raise InvalidRequest(
                f"offset {offset} is not where the file stands ({self._received}).",
                reason="OUT_OF_RANGE",
                file=self.declaration.name,
                item="offset",
                found=offset,
                allowed=self._received,
                metadata={"offset": str(self._received)},
            )
        if offset + len(data) > self.declaration.size:
            raise UploadCorrupt(
                f"more bytes than the declared {self.declaration.size}.",
                file=self.declaration.name,
                found=offset + len(data),
                allowed=self.declaration.size,
            )
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]
        self._sha256.update(data)
        self._received += len(data)

    def check(self) -> None:
        """UploadCorrupt unless the declared bytes have come."""
        size, sha256 = self.declaration.size, self.declaration.sha256
        if self._received != size:
            raise UploadCorrupt(
                f"{self._received} of the declared {size} bytes have come.",
                file=self.declaration.name,
                found=self._received,
                allowed=size,
                hint="Upload it again.",
            )
        if self._sha256.hexdigest() != sha256:
            raise UploadCorrupt(
                f"the bytes have sha256 {self._sha256.hexdigest()}, declared was {sha256}.",
                file=self.declaration.name,
                found=self._sha256.hexdigest(),
                allowed=sha256,
                hint="Upload it again.",
            )
        self.close()

    def close(self) -> None:
        """Closes the file; again is fine."""
        self._stream.close()


def _sweep(root: Path) -> None:
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        lock_file = root / f"{folder.name}.lock"
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
