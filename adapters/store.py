"""Where versions, aliases and blobs lie: a flat key space of create-only objects.

Nothing is ever updated. "Create, fail if it exists" is the one primitive that is compare-and-swap
on a local disk and on every object store, so all mutable state is a log of creates (log.py).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

MAX_KEY_LENGTH = 1024
# Parts start with a letter, digit or "_": no "..", no hidden or temporary names.
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
TEMPORARY = ".tmp"
ORPHAN_SECONDS = 3600.0


class Store(Protocol):
    """Create-only objects by key. Thread-safe; every method may block on I/O.

    Keys are "/"-separated parts of letters, digits, ".", "_" and "-"; others raise ValueError.
    """

    def create(self, key: str, data: bytes | Path) -> bool:
        """True: written, durable and visible. False: the key exists (and is durable)."""
        ...

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes, or a part of them. KeyError if absent."""
        ...

    def get_path(self, key: str) -> Path:
        """A local file with these bytes, to be mapped; never written to. KeyError if absent."""
        ...

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """Keys that start with `prefix` and sort after `after`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes the object; an absent key is fine."""
        ...


def check_key(key: str) -> str:
    """The key, or ValueError when it could leave the store or hide in it."""
    if len(key) > MAX_KEY_LENGTH or not KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is not a store key")
    return key


class LocalStore:
    """Objects are files under `root`; a create survives `kill -9` and power loss.

    A create writes a temporary file in the same file system, fsyncs it, links it to its final
    name (which fails if the name exists) and fsyncs the directory. Neither rename (it overwrites)
    nor O_EXCL on the final name (readers would see half a file) does both. Several processes may
    share one root on a local disk.
    """

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


class MemoryStore:
    """A store that forgets: for tests and for serving without a disk. `close` removes its files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._files = tempfile.TemporaryDirectory(prefix="polygraft-")

    def create(self, key: str, data: bytes | Path) -> bool:
        """See Store."""
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        with self._lock:
            if check_key(key) in self._objects:
                return False
            self._objects[key] = content
            return True

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        end = None if length is None else offset + length
        with self._lock:
            return self._objects[check_key(key)][offset:end]

    def get_path(self, key: str) -> Path:
        """See Store: a copy in a temporary directory, made at the first call."""
        path = Path(self._files.name) / key
        with self._lock:
            content = self._objects[check_key(key)]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return path

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """See Store."""
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix))
        return (key for key in keys if after is None or key > after)

    def delete(self, key: str) -> None:
        """See Store."""
        with self._lock:
            self._objects.pop(check_key(key), None)
            (Path(self._files.name) / key).unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the temporary copies."""
        self._files.cleanup()


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
