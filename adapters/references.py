"""What the records of a store refer to, so that a collector knows what to keep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from polygraft.adapters.blobs import BLOBS, MANIFESTS, manifest_key
from polygraft.adapters.canonical import sha256_digest
from polygraft.adapters.errors import AdapterCorrupt
from polygraft.adapters.log import Log
from polygraft.adapters.stores.protocol import Store

_LOGS = ("versions/", "aliases/")


class References:
    """The manifests and files that versions and aliases name; `update` reads what has come since.

    Never forgets: what was named once is kept until the next pass. Raises AdapterCorrupt for a
    record or a manifest that cannot be read, because then nobody knows what it needs.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._logs: dict[str, tuple[str, ...]] = {}  # keys that were read, by log
        self._digests: set[str] = set()
        self.keys: set[str] = set()
        self.update()

    def update(self) -> None:
        """Takes in what was written since; costs two listings when that is nothing."""
        found: set[str] = set()
        for prefix in _LOGS:
            keys = list(self._store.list(prefix))
            self._store.fetch(keys)
            for log, of in groupby(keys, lambda key: key.rpartition("/")[0]):
                if self._logs.get(log) != (listed := tuple(of)):
                    self._logs[log] = listed
                    found |= set(self._named(log, listed))
        new = found - self._digests
        self._store.fetch([manifest_key(digest) for digest in new])
        for digest in sorted(new):
            self.keys.update(self._needed(digest))
        self._digests |= new

    def alias_logs(self) -> dict[str, tuple[str, ...]]:
        """The keys of every alias's log, oldest first."""
        return {log: keys for log, keys in self._logs.items() if log.startswith("aliases/")}

    def _named(self, log: str, keys: tuple[str, ...]) -> Iterator[str]:
        """Digests of all versions that are not deleted; of an alias, those of its last move."""
        is_alias = log.startswith("aliases/")
        for _, entry in Log(self._store, f"{log}/").entries(keys[-1:] if is_alias else keys):
            if isinstance(entry, AdapterCorrupt):
                raise entry
            if is_alias:
                yield from (str(target["version"]) for target in entry["targets"])
            else:
                yield str(entry["version"])

    def _needed(self, digest: str) -> Iterator[str]:
        key = manifest_key(digest)
        try:
            data = self._store.get(key)
        except KeyError:
            raise AdapterCorrupt("the manifest of a version is missing.", file=key) from None
        if sha256_digest(data) != digest:
            raise AdapterCorrupt("the manifest of a version has changed.", file=key)
        yield key
        yield from _files(json.loads(data)["files"])


def _files(files: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (f"{BLOBS}{file['sha256']}" for file in files)


def collectable(store: Store) -> Iterator[str]:
    """Everything that a collector may delete when nothing refers to it, manifests first.

    Why that order: a manifest must never stand there without its files.
    """
    for prefix in (MANIFESTS, BLOBS, "probe/"):
        yield from store.list(prefix)
