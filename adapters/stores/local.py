"""A store in a directory of a local disk, which survives `kill -9` and loss of power."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from polygraft.adapters.errors import Overloaded, PolygraftError, Unavailable
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.stores.protocol import check_key
from polygraft.adapters.stores.temporary import TemporaryFolder

TEMPORARY = ".tmp"
_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class LocalStore:
    """Objects are files under `root`.

    A create writes a temporary file in the same file system, fsyncs it, links it to its final
    name (which fails if the name exists) and fsyncs the directory. Neither rename (it overwrites)
    nor O_EXCL on the final name (readers would see half a file) does both. Several processes may
    share one root on a local disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._place = str(root)
        self._durable: set[Path] = set()
        self._lock = threading.Lock()
        self._make_directory(root / TEMPORARY)
        self._temporary = TemporaryFolder(root / TEMPORARY)

    def create(self, key: str, data: bytes | Path, *, durable: bool = True) -> bool:
        """See Store."""
        final = self._path(key)
        with disk_errors(key):
            return self._create(final, data, durable)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        # Why no Path: a server that starts reads tens of thousands of small objects.
        name = f"{self._place}/{check_key(key)}"
        try:
            with open(name, "rb", buffering=0) as stream:
                if offset:
                    stream.seek(offset)
                return stream.readall() if length is None else _read(stream, length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyError(key) from None
        except OSError as error:
            raise _disk_error(error, key) from error

    def get_path(self, key: str) -> Path:
        """See Store: the stored file itself."""
        path = self._path(key)
        if not path.is_file():
            raise KeyError(key)
        return path

    def size(self, key: str) -> int:
        """See Store."""
        return self.get_path(key).stat().st_size

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """See Store."""
        folder, _, start = prefix.rpartition("/")
        # Why: a prefix may end in the middle of a name.
        keys = _walk(str(self.root / folder), f"{folder}/" if folder else "", start)
        return iter(sorted(keys if after is None else (key for key in keys if key > after)))

    def delete(self, key: str) -> None:
        """See Store."""
        path = self._path(key)
        failpoint("store.delete")
        with disk_errors(key):
            path.unlink(missing_ok=True)

    def fetch(self, keys: Sequence[str]) -> None:
        """See Store: a disk is near."""

    def has_copy(self, key: str) -> bool:
        """See Store: there are none."""
        return False

    def drop_copy(self, key: str) -> bool:
        """See Store: the file is the object, not a copy."""
        check_key(key)
        return False

    def _create(self, final: Path, data: bytes | Path, durable: bool) -> bool:
        failpoint("store.open")
        self._make_directory(final.parent)
        temporary = self._temporary.path / uuid.uuid4().hex
        try:
            _write(temporary, data, durable)
            failpoint("store.link")
            try:
                os.link(temporary, final)
                created = True
            except FileExistsError:
                created = False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if durable:
            failpoint("store.fsync_directory")
            # Why also when it existed: its creator may not have come so far, and "it exists" is
            # an answer that callers rely on.
            _fsync_directory(final.parent)
        return created

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _make_directory(self, directory: Path) -> None:
        """Creates it, and makes the entries of all new directories durable, once per process."""
        with self._lock:
            if directory in self._durable:
                return
        directory.mkdir(parents=True, exist_ok=True)
        # Why every level up to the root: another process may have made one and not synced it.
        for level in [directory, *directory.parents]:
            _fsync_directory(level)
            if level == self.root:
                _fsync_directory(level.parent)
                break
        with self._lock:
            self._durable.add(directory)


@contextlib.contextmanager
def disk_errors(key: str) -> Iterator[None]:
    """Turns what a disk may answer into errors that a caller is told about. Absent files pass."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise _disk_error(error, key) from error


def _disk_error(error: OSError, key: str) -> PolygraftError:
    if error.errno in _FULL:
        return Overloaded(
            "the disk is full.",
            reason="STORAGE_FULL",
            found=key,
            hint="Free space under the store, then repeat the call.",
            retry_after=10.0,
        )
    return Unavailable(
        f"the disk failed: {error.strerror or error}.",
        reason="STORE_UNAVAILABLE",
        found=key,
        hint="Look into the server's log, then repeat the call.",
    )


def _read(stream: io.FileIO, length: int) -> bytes:
    """Up to `length` bytes; fewer only at the end of the file."""
    data = b""
    while len(data) < length and (more := stream.read(length - len(data))):
        data += more
    return data


def _write(path: Path, data: bytes | Path, durable: bool) -> None:
    """Why no retry: after a failed fsync the kernel may drop the pages and report success."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for chunk in _chunks(data):
            failpoint("store.write")
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        if durable:
            failpoint("store.fsync_file")
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, Path):
        with data.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
    else:
        yield data


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: str, place: str, start: str) -> Iterator[str]:
    """Keys of the files in `folder`, whose key is `place`, that begin with `place + start`."""
    folders = [(folder, place)]
    while folders:
        folder, place = folders.pop()
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                name = entry.name
                if (start and not name.startswith(start)) or name == TEMPORARY:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, f"{place}{name}/"))
                else:
                    yield place + name
        start = ""  # only the first level is cut
