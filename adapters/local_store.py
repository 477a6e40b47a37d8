"""A store in a directory of a local disk whose creates survive `kill -9` and power loss.

A create writes a temporary file in the same file system, fsyncs it, links it to its final name
(which fails if the name exists) and fsyncs the directory. Neither rename (it overwrites) nor
O_EXCL on the final name (readers would see half a file) does both.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from polygraft.adapters.store import check_key

TEMPORARY = ".tmp"
ORPHAN_SECONDS = 3600.0


class LocalStore:
    """Objects are files under `root`. Several processes may share one on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / TEMPORARY
        self._durable: set[Path] = set()
        self._lock = threading.Lock()
        self._make_directory(self._temporary)
        self._sweep()

    def create(self, key: str, data: bytes | Path) -> bool:
        """See Store. OSError (disk full, I/O error) means nothing was created."""
        final = self._path(key)
        self._make_directory(final.parent)
        temporary = self._temporary / uuid.uuid4().hex
        try:
            _write_durably(temporary, data)
            try:
                os.link(temporary, final)
                created = True
            except FileExistsError:
                created = False
        finally:
            temporary.unlink(missing_ok=True)
        # Why also when it existed: its creator may not have come so far, and "it exists" is
        # an answer that callers rely on.
        _fsync_directory(final.parent)
        return created

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        with self.get_path(key).open("rb") as stream:
            stream.seek(offset)
            return stream.read(-1 if length is None else length)

    def get_path(self, key: str) -> Path:
        """See Store: the stored file itself."""
        path = self._path(key)
        if not path.is_file():
            raise KeyError(key)
        return path

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """See Store."""
        folder = self.root / prefix.rpartition("/")[0]
        keys = (path.relative_to(self.root).as_posix() for path in _walk(folder))
        return iter(
            sorted(k for k in keys if k.startswith(prefix) and (after is None or k > after))
        )

    def delete(self, key: str) -> None:
        """See Store."""
        path = self._path(key)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _fsync_directory(path.parent)

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

    def _sweep(self) -> None:
        """Removes what creates cut short have left; recent files may belong to another process."""
        oldest = time.time() - ORPHAN_SECONDS
        for path in self._temporary.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                continue


def _write_durably(path: Path, data: bytes | Path) -> None:
    """Why no retry: after a failed fsync the kernel may drop the pages and report success."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        if isinstance(data, Path):
            with data.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
        else:
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != TEMPORARY]
        yield from (Path(directory) / name for name in files)
