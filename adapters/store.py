"""Where versions, aliases and blobs lie: a flat key space of create-only objects.

Nothing is ever updated. "Create, fail if it exists" is the one primitive that is compare-and-swap
on a local disk and on every object store, so all mutable state is a log of creates (log.py).
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

MAX_KEY_LENGTH = 1024
# Parts start with a letter, digit or "_": no "..", no hidden or temporary names.
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


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
            return self._objects.setdefault(check_key(key), content) is content

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
