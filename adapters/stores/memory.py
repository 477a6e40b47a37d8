"""A store that forgets: for tests and for serving without a disk."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from polygraft.adapters.stores.protocol import check_key


class MemoryStore:
    """Objects in a dictionary; `close` removes the files that `get_path` made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._files = tempfile.TemporaryDirectory(prefix="polygraft-")

    def create(self, key: str, data: bytes | Path, *, durable: bool = True) -> bool:
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

    def size(self, key: str) -> int:
        """See Store."""
        return len(self.get(key))

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

    def fetch(self, keys: Sequence[str]) -> None:
        """See Store: memory is near."""

    def has_copy(self, key: str) -> bool:
        """See Store: there are none."""
        return False

    def drop_copy(self, key: str) -> bool:
        """See Store."""
        path = Path(self._files.name) / check_key(key)
        with self._lock:
            existed = path.exists()
            path.unlink(missing_ok=True)
        return existed

    def close(self) -> None:
        """Removes the temporary copies."""
        self._files.cleanup()
