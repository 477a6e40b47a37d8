"""How processes that share a store learn what the others have written, without listing it all.

    changes/<n:010d>.json      {"key": "aliases/_/sum/live/0000000007.json", "by": "<process>"}

Whoever writes a record of a log then appends its key here; the others ask for what comes after
the last number they have seen. It is a hint: a process that dies between the two, or that is
further behind than what is kept, makes the others read the logs themselves (`Registry.refresh`).
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from polygraft.adapters.errors import PolygraftError
from polygraft.adapters.stores.protocol import Store

logger = logging.getLogger(__name__)

PREFIX = "changes/"
KEPT = 1000


class SharedStore:
    """A store as one of several processes sees it: the store, and the feed of changes in it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._me = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._newest = 0  # a number that exists, or 0
        self._seen = 0  # up to here `poll` has told

    def announce(self, key: str) -> None:
        """Tells the others that `key` was written. Never fails: the record itself is durable."""
        record = json.dumps({"key": key, "by": self._me}).encode()
        try:
            self._append(record)
        except PolygraftError as error:
            logger.warning("others learn later that %s was written: %s", key, error)

    def skip(self) -> None:
        """Forgets what came up to now. Call it before reading the logs themselves."""
        newest = max(self._numbers(0), default=0)
        with self._lock:
            self._seen = newest
            self._newest = max(self._newest, newest)

    def poll(self) -> Sequence[str] | None:
        """Keys that others have written since the last call; None when some were missed."""
        with self._lock:
            seen = self._seen
        numbers = self._numbers(seen)
        if not numbers:
            return []
        keys = self._read(numbers) if numbers[0] == seen + 1 else None
        with self._lock:
            self._seen = max(self._seen, numbers[-1])
            self._newest = max(self._newest, self._seen)
        return keys

    def _append(self, record: bytes) -> None:
        with self._lock:
            number = self._newest + 1
        while not self._store.create(_key(number), record, durable=False):
            number = max(self._numbers(number), default=number) + 1
        with self._lock:
            self._newest = max(self._newest, number)
        if number > KEPT:
            self._store.delete(_key(number - KEPT))

    def _numbers(self, after: int) -> Sequence[int]:
        keys = self._store.list(PREFIX, after=_key(after))
        return [int(key.removeprefix(PREFIX).removesuffix(".json")) for key in keys]

    def _read(self, numbers: Sequence[int]) -> Sequence[str] | None:
        keys = []
        for number in numbers:
            try:
                record = json.loads(self._store.get(_key(number)))
                if record["by"] != self._me:
                    keys.append(str(record["key"]))
            except (KeyError, TypeError, ValueError):
                return None  # dropped meanwhile, or lost with the power
        return keys

    # The store itself

    def create(self, key: str, data: bytes | Path, *, durable: bool = True) -> bool:
        """See Store."""
        return self._store.create(key, data, durable=durable)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        return self._store.get(key, offset, length)

    def get_path(self, key: str) -> Path:
        """See Store."""
        return self._store.get_path(key)

    def size(self, key: str) -> int:
        """See Store."""
        return self._store.size(key)

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """See Store."""
        return self._store.list(prefix, after)

    def delete(self, key: str) -> None:
        """See Store."""
        self._store.delete(key)

    def fetch(self, keys: Sequence[str]) -> None:
        """See Store."""
        self._store.fetch(keys)

    def has_copy(self, key: str) -> bool:
        """See Store."""
        return self._store.has_copy(key)

    def drop_copy(self, key: str) -> bool:
        """See Store."""
        return self._store.drop_copy(key)


def _key(number: int) -> str:
    return f"{PREFIX}{number:010d}.json"
