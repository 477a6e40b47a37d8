"""A create-only log in a store: the one way in which anything mutable is kept.

Entry n + 1 is written with "create, fail if it exists"; whoever creates it owns the number. That
is compare-and-swap, and it keeps the history.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from polygraft.adapters.errors import AdapterCorrupt
from polygraft.adapters.store import Store

DELETED = "deleted"


class Log:
    """Entries 1, 2, 3 ... under `prefix`; each a small JSON object with `at` and `nonce` added."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def append(self, number: int, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entry as written, or None when another writer has this number."""
        nonce = uuid.uuid4().hex
        written = {**entry, "at": time.time(), "nonce": nonce}
        key = self._key(number)
        if self._store.create(key, json.dumps(written).encode()):
            return written
        # Why: a store client may retry a create whose reply was lost; then it was ours.
        return written if self._read(key)["nonce"] == nonce else None

    def entries(self) -> Iterator[tuple[int, dict[str, Any] | AdapterCorrupt]]:
        """Numbers and entries in order, without deleted ones; a damaged one as its error."""
        keys = list(self._store.list(self._prefix))
        deleted = {key for key in keys if key.endswith(f".{DELETED}.json")}
        for key in keys:
            if key in deleted or _tombstone(key) in deleted:
                continue
            try:
                yield _number(key), self._read(key)
            except AdapterCorrupt as error:
                yield _number(key), error

    def last_number(self) -> int:
        """The highest number ever written, deleted ones included; 0 for an empty log."""
        return max((_number(key) for key in self._store.list(self._prefix)), default=0)

    def delete(self, number: int, reason: str) -> None:
        """Puts a tombstone beside the entry; its number is never given again."""
        record = json.dumps({"at": time.time(), "reason": reason}).encode()
        self._store.create(_tombstone(self._key(number)), record)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:010d}.json"

    def _read(self, key: str) -> dict[str, Any]:
        try:
            value = json.loads(self._store.get(key))
        except ValueError as error:
            raise AdapterCorrupt("the record is not JSON.", file=key) from error
        if not isinstance(value, dict) or "nonce" not in value:
            raise AdapterCorrupt("the record lacks its fields.", file=key)
        return value


def _tombstone(key: str) -> str:
    """Only the end: a name in the middle of the key may hold ".json" as well."""
    return f"{key.removesuffix('.json')}.{DELETED}.json"


def _number(key: str) -> int:
    return int(key.rpartition("/")[2].partition(".")[0])
