"""A create-only log in a store: the one way in which anything mutable is kept.

Entry n + 1 is written with "create, fail if it exists"; whoever creates it owns the number. That
is compare-and-swap, and it keeps the history.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polygraft.adapters.changes import SharedStore
from polygraft.adapters.errors import AdapterCorrupt
from polygraft.adapters.stores.protocol import Store

DELETED = "deleted"


class Log:
    """Entries 1, 2, 3 ... under `prefix`; each a small JSON object with `at` and `nonce` added.

    Old entries may have been collected as garbage, so the first number need not be 1.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def append(self, number: int, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entry as written, or None when another writer has this number or a later one."""
        # Why: who is far behind may ask for a number whose entry has been collected as garbage.
        if next(self._store.list(self._prefix, after=self._key(number)), None) is not None:
            return None
        nonce = uuid.uuid4().hex
        written = {**entry, "at": time.time(), "nonce": nonce}
        key = self._key(number)
        # Why compare: a store client may retry a create whose reply was lost; then it was ours.
        created = self._store.create(key, json.dumps(written).encode())
        if not created and self._read(key)["nonce"] != nonce:
            return None
        self._announce(key)
        return written

    def entries(
        self, keys: Sequence[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any] | AdapterCorrupt]]:
        """Numbers and entries in order, without deleted ones; a damaged one as its error.

        `keys`: the log's keys, sorted, from somebody who has listed them already.
        """
        keys = self.keys() if keys is None else keys
        deleted = {key for key in keys if key.endswith(f".{DELETED}.json")}
        for key in keys:
            if key in deleted or _tombstone(key) in deleted:
                continue
            try:
                yield _number(key), self._read(key)
            except AdapterCorrupt as error:
                yield _number(key), error
            except KeyError:
                continue  # collected since the keys were listed

    def keys(self) -> list[str]:
        """The keys of all entries and tombstones, sorted; nearby when they are read."""
        keys = list(self._store.list(self._prefix))
        self._store.fetch(keys)
        return keys

    def last_number(self, keys: Sequence[str] | None = None) -> int:
        """The highest number ever written, deleted ones included; 0 for an empty log."""
        keys = list(self._store.list(self._prefix)) if keys is None else keys
        return max(map(_number, keys), default=0)

    def delete(self, number: int, reason: str) -> None:
        """Puts a tombstone beside the entry; its number is never given again."""
        record = json.dumps({"at": time.time(), "reason": reason}).encode()
        key = _tombstone(self._key(number))
        self._store.create(key, record)
        self._announce(key)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:010d}.json"

    def _announce(self, key: str) -> None:
        if isinstance(self._store, SharedStore):
            self._store.announce(key)

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return _parse(key, self._store.get(key))
        except AdapterCorrupt:
            if not self._store.drop_copy(key):
                raise
            return _parse(key, self._store.get(key))


def _parse(key: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
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
