"""Files of a remote store on this machine's disk: the least recently used go first.

What is in them is checked by whoever reads them (`adapters.blobs` hashes every file again).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

# Why: whoever asked for a file has not opened it yet when the next one pushes it out.
_KEPT_SECONDS = 60.0
_PART = ".part"


class FileCache:
    """At most `max_bytes` of files in `directory`, besides those used in the last minute.

    Thread-safe. The directory is this process's alone; what it holds is found again.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._used_at: dict[str, float] = {}  # by the monotonic clock
        self._adopt()

    def get(self, key: str) -> Path | None:
        """The file of this key, now the most recently used; None if it is not here."""
        name = _name(key)
        path = self._directory / name
        with self._lock:
            if name not in self._sizes:
                return None
            try:
                os.utime(path)  # so that the order outlives the process
            except FileNotFoundError:
                del self._sizes[name]
                return None
            self._use(name, self._sizes[name])
        return path

    def put(self, key: str, chunks: Iterable[bytes]) -> Path:
        """Writes the file and returns it; whole or not at all."""
        name = _name(key)
        part = self._directory / f"{uuid.uuid4().hex}{_PART}"
        try:
            with part.open("xb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
                size = stream.tell()
            with self._lock:
                os.replace(part, self._directory / name)
                self._use(name, size)
                self._evict()
        finally:
            part.unlink(missing_ok=True)
        return self._directory / name

    def has(self, key: str) -> bool:
        """Whether the file of this key is here. Does not count as a use."""
        with self._lock:
            return _name(key) in self._sizes

    def drop(self, key: str) -> bool:
        """Removes the file of this key; False if it is not here."""
        name = _name(key)
        with self._lock:
            self._used_at.pop(name, None)
            (self._directory / name).unlink(missing_ok=True)
            return self._sizes.pop(name, None) is not None

    def num_bytes(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(self._sizes.values())

    def _use(self, name: str, size: int) -> None:
        self._sizes[name] = size
        self._sizes.move_to_end(name)
        self._used_at[name] = time.monotonic()

    def _evict(self) -> None:
        total = sum(self._sizes.values())
        recent = time.monotonic() - _KEPT_SECONDS
        for name in list(self._sizes):
            if total <= self._max_bytes or self._used_at.get(name, recent) > recent:
                return
            (self._directory / name).unlink(missing_ok=True)
            total -= self._sizes.pop(name)
            self._used_at.pop(name, None)

    def _adopt(self) -> None:
        """Takes over what an earlier process left, and removes what it had half written."""
        found = []
        for path in self._directory.iterdir():
            if path.suffix == _PART:
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, path.name, status.st_size))
        with self._lock:
            self._sizes.update({name: size for _, name, size in sorted(found)})
            self._evict()


def _name(key: str) -> str:
    """The sha256 of the content where the key says it, else of the key."""
    last = key.rpartition("/")[2]
    is_digest = key == f"blobs/sha256/{last}" and len(last) == 64
    return last if is_digest else hashlib.sha256(key.encode()).hexdigest()
