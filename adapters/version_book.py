"""Versions: numbers of a name, each given once. The store's logs are the truth, this their index.

Knows no aliases. Like `adapters.aliases`, it is told by its caller when to look into the store.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from polygraft.adapters.blobs import Blobs
from polygraft.adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterNotFound
from polygraft.adapters.events import AdapterEvent, EventKind
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.log import Log
from polygraft.adapters.names import name_path, not_found, path_name
from polygraft.adapters.stores.protocol import Store
from polygraft.adapters.version_table import VersionRecord, VersionTable

VERSIONS = "versions/"


class VersionBook:
    """All versions of a store, held in memory; every one is durable before it is visible.

    Whoever appends or deletes holds `writing`; `load` takes it for one name after the other.
    `on_change` is told of what becomes visible or goes, by whichever process.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        writing: threading.Lock,
        on_change: Callable[[AdapterEvent], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._writing = writing
        self._on_change = on_change
        self._table = VersionTable()
        # Versions that are published but whose bytes were found damaged, by digest.
        self._corrupt: dict[str, AdapterCorrupt] = {}
        self._listed: dict[str, int] = {}  # hash of the keys that a name had when it was read

    def load(self, published: Iterable[str] | None = None) -> None:
        """Reads every log that has changed; with `published`, only those of these records."""
        for name, keys in self._logs(published).items():
            if keys is not None and self._listed.get(name) == hash(keys):
                continue
            with self._writing:
                # Why not these keys again: the log may have grown since they were listed.
                self._reload(name, None if name in self._listed else keys)
            self._listed[name] = hash(keys)
            if published is not None:
                self._blobs.fetch_manifests(r.digest for r in self._table.of(name).values())
        if published is None:
            self._blobs.fetch_manifests(self._table.digests())
            self._corrupt.clear()  # another process may have mended it

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        return self._table.names()

    def of(self, name: str) -> dict[int, VersionRecord]:
        """The versions of a name by number, damaged bytes or not; AdapterNotFound."""
        records = self._table.of(name)
        if not records:
            raise not_found("adapter", name, self.names())
        return records

    def readable(self, name: str) -> list[VersionRecord]:
        """The versions of a name without damaged ones, by number; AdapterNotFound."""
        return [record for record in self.of(name).values() if self._is_readable(record)]

    def version(self, name: str, number: int) -> VersionRecord:
        """One version; AdapterNotFound lists what exists, AdapterCorrupt says what is damaged."""
        record = self._table.get(name, number)
        if record is None:
            existing = [f"{name}@{known}" for known in self.of(name)]
            raise not_found("version", f"{name}@{number}", existing)
        return self._readable(record)

    def with_digest(self, digest: str) -> VersionRecord:
        """The first version with this content, by name and number; raises as `version`."""
        found = self._table.with_digest(digest)
        if not found:
            raise AdapterNotFound(f"there is no version {digest}.", item="adapter", found=digest)
        return self._readable(found[0])

    def find(self, name: str, digest: str) -> VersionRecord | None:
        """The lowest-numbered version of a name with this content; None if there is none."""
        found = (r for r in self._table.with_digest(digest) if r.adapter_name == name)
        return min(found, key=lambda record: record.number, default=None)

    def is_damaged(self, name: str, number: int) -> bool:
        """Whether the record of this version could not be read."""
        return self._table.is_damaged(name, number)

    def damaged(self, digest: str, error: AdapterCorrupt) -> None:
        """Its bytes were found damaged: it is answered so until `mended`."""
        self._corrupt[digest] = error

    def mended(self, digest: str) -> None:
        """Its bytes have been written again."""
        self._corrupt.pop(digest, None)

    def append(self, name: str, digest: str, facts: Mapping[str, Any]) -> VersionRecord:
        """Gives the content the next number of a name, unless another process has done so."""
        log = self._log(name)
        while True:
            number = log.last_number() + 1
            if number > self._table.last(name) + 1:
                self._reload(name)  # another process has published, perhaps this very content
                if existing := self.find(name, digest):
                    return existing
            failpoint("publish.version")
            entry = log.append(number, {"version": digest, **facts})
            if entry is not None:
                record = self._record(name, number, entry)
                self._table.add(record)
                self._tell(EventKind.PUBLISHED, record)
                return record

    def delete(self, record: VersionRecord) -> None:
        """Takes the number away for ever; its bytes are the collector's business."""
        self._log(record.adapter_name).delete(record.number, "deleted")
        self._table.remove(record)
        self._tell(EventKind.VERSION_DELETED, record)

    def _logs(self, published: Iterable[str] | None) -> dict[str, tuple[str, ...] | None]:
        """Names to look into, each with the keys of its log where they are known."""
        if published is not None:
            return dict.fromkeys(sorted({_name(key) for key in published}))
        keys = list(self._store.list(VERSIONS))
        self._store.fetch(keys)
        gone: dict[str, tuple[str, ...] | None] = dict.fromkeys(self.names(), ())
        return gone | {name: tuple(of) for name, of in itertools.groupby(keys, _name)}

    def _reload(self, name: str, keys: Sequence[str] | None = None) -> None:
        log = self._log(name)
        keys = log.keys() if keys is None else keys
        records: dict[int, VersionRecord] = {}
        damaged: dict[int, AdapterCorrupt] = {}
        for number, entry in log.entries(keys):
            try:
                if isinstance(entry, AdapterCorrupt):
                    raise entry
                records[number] = self._record(name, number, entry)
            except AdapterCorrupt as error:
                # Why not raise: one damaged version must not keep the others from being served.
                damaged[number] = error
        before = self._table.of(name)
        self._table.replace(name, records, damaged, log.last_number(keys))
        for number in sorted(before.keys() - records.keys() - damaged.keys()):
            self._tell(EventKind.VERSION_DELETED, before[number])
        for number in sorted(records.keys() - before.keys()):
            self._tell(EventKind.PUBLISHED, records[number])

    def _record(self, name: str, number: int, entry: Mapping[str, Any]) -> VersionRecord:
        try:
            return VersionRecord(
                adapter_name=name,
                number=number,
                digest=entry["version"],
                verified=entry["verified"],
                created_at=entry["at"],
                read_manifest=self._blobs.manifest,
                proven=entry.get("proven", False),  # older versions were published untested
            )
        except KeyError as error:
            raise AdapterCorrupt(f"the record of {name}@{number} lacks {error}.") from error

    def _is_readable(self, record: VersionRecord) -> bool:
        try:
            return self._readable(record) is record
        except AdapterCorrupt:
            return False

    def _readable(self, record: VersionRecord) -> VersionRecord:
        """The record, or AdapterCorrupt when its manifest or its bytes were found damaged."""
        if damaged := self._corrupt.get(record.digest):
            raise damaged
        try:
            self._blobs.manifest(record.digest)
        except (AdapterInvalid, AdapterNotFound) as error:
            damaged = AdapterCorrupt(str(error), found=record.digest)
            self.damaged(record.digest, damaged)
            raise damaged from error
        return record

    def _tell(self, kind: EventKind, record: VersionRecord) -> None:
        self._on_change(AdapterEvent(kind, record.adapter_name, record.number, record.digest))

    def _log(self, name: str) -> Log:
        return Log(self._store, f"{VERSIONS}{name_path(name)}/")


def _name(key: str) -> str:
    """The name that the key of a version's record stands for."""
    return path_name(key.removeprefix(VERSIONS).rpartition("/")[0])
