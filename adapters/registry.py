"""Names, numbered versions and aliases over a store. The store is the truth, this its index.

Thread-safe. Reads never touch the store, so an event loop may call them; writes block until they
are durable. Publishing goes blobs, manifest, version number, alias: each step is create-only, so
a crash between any two leaves nothing half visible and a repeat completes it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygraft.adapters.aliases import AliasBook, AliasRecord
from polygraft.adapters.blobs import Blobs
from polygraft.adapters.errors import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterNotFound,
    AliasConflict,
    InvalidRequest,
    PolygraftError,
)
from polygraft.adapters.log import Log
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.names import (
    LIVE,
    check_alias,
    check_name,
    name_path,
    not_found,
    parse_reference,
    path_name,
)
from polygraft.adapters.store import Store

MAX_REASON_BYTES = 1024  # of an alias move; it is kept for ever and listed with the alias


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version. `verified`: its manifest declared this server's base."""

    adapter_name: str
    number: int
    digest: str
    manifest: Manifest
    verified: bool
    created_at: float  # seconds since the epoch


class Registry:
    """The adapters of one store.

    `in_use(digest)` says whether requests or a pin hold a version; deletes are refused then.
    """

    def __init__(
        self, store: Store, *, in_use: Callable[[str], bool] = lambda digest: False
    ) -> None:
        self._store = store
        self._in_use = in_use
        self._blobs = Blobs(store)
        self._aliases = AliasBook(store)
        self._lock = threading.Lock()  # guards the maps; never held during I/O
        self._writing = threading.Lock()  # one writer of this process at a time
        self._versions: dict[str, dict[int, VersionRecord]] = {}
        self._last: dict[str, int] = {}  # the highest number seen of each name
        # Versions that are published but cannot be served, by (name, number) and by digest.
        self._damaged: dict[tuple[str, int], AdapterCorrupt] = {}
        self._corrupt: dict[str, AdapterCorrupt] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads names, versions and aliases from the store, with what other processes wrote."""
        paths = {
            key.removeprefix("versions/").rpartition("/")[0]
            for key in self._store.list("versions/")
        }
        for path in paths:
            self._reload(path_name(path))
        self._aliases.load()

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        with self._lock:
            return sorted(name for name, versions in self._versions.items() if versions)

    def versions(self, name: str) -> list[VersionRecord]:
        """The versions of a name by number; AdapterNotFound for an unknown name."""
        with self._lock:
            versions = dict(self._versions.get(name, {}))
        if not versions:
            raise not_found("adapter", name, self.names())
        return [versions[number] for number in sorted(versions)]

    def version(self, name: str, number: int) -> VersionRecord:
        """One version; AdapterNotFound lists what exists."""
        if damaged := self._damaged.get((name, number)):
            raise damaged
        versions = {record.number: record for record in self.versions(name)}
        if number not in versions:
            raise not_found("version", f"{name}@{number}", [f"{name}@{n}" for n in versions])
        return versions[number]

    def aliases(self, name: str) -> list[AliasRecord]:
        """The aliases of a name; AdapterNotFound for an unknown name."""
        self.versions(name)
        return self._aliases.of(name)

    def alias_history(self, name: str, alias: str) -> list[AliasRecord]:
        """All moves of an alias, the oldest first."""
        return self._aliases.history(name, alias)

    def live(self, name: str) -> AliasRecord | None:
        """Where `live` of a name points; None for a name without it."""
        return self._aliases.current(name, LIVE)

    def find(self, name: str, digest: str) -> VersionRecord | None:
        """The lowest-numbered version of a name with this content; None if there is none."""
        with self._lock:
            found = [r for r in self._versions.get(name, {}).values() if r.digest == digest]
        return min(found, key=lambda record: record.number, default=None)

    def resolve(self, reference: str) -> VersionRecord:
        """The version that a reference means now.

        Raises InvalidRequest for a malformed one, AdapterNotFound naming what exists, and
        AdapterCorrupt for a version whose stored bytes were found damaged.
        """
        parsed = parse_reference(reference)
        if parsed.digest:
            record = self._by_digest(parsed.digest)
        else:
            number = parsed.number or self._alias_target(parsed.name, parsed.alias or LIVE)
            record = self.version(parsed.name, number)
        if record.digest in self._corrupt:
            raise self._corrupt[record.digest]
        return record

    def publish(self, name: str, manifest: Manifest, files: Mapping[str, Path]) -> VersionRecord:
        """Stores the files and gives them the next number of `name`; the first becomes `live`.

        The same content under the same name returns the existing record. Files that do not match
        the manifest raise UploadCorrupt.
        """
        check_name(name)
        digest = self._blobs.put(manifest, files)
        with self._writing:
            with self._lock:
                repaired = self._corrupt.pop(digest, None)
            if repaired:
                for owner in {name, *self._damaged_names(digest)}:
                    self._reload(owner)
            record = self.find(name, digest) or self._append(name, manifest, digest)
            with contextlib.suppress(AliasConflict):  # another process was first
                if self.live(name) is None:
                    self._move(record, LIVE, 0, "first version")
        return record

    def move_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        expected_generation: int | None = None,
        reason: str = "",
    ) -> AliasRecord:
        """Points an alias at a version; AliasConflict unless it is at `expected_generation`.

        None moves unconditionally, 0 demands that the alias does not exist yet.
        """
        check_alias(alias)
        if len(reason.encode()) > MAX_REASON_BYTES:
            raise InvalidRequest(
                f"{len(reason.encode())} bytes are more than the {MAX_REASON_BYTES} allowed.",
                reason="LIMIT_EXCEEDED",
                item="reason",
                found=len(reason.encode()),
                allowed=MAX_REASON_BYTES,
            )
        with self._writing:
            return self._move(self.version(name, number), alias, expected_generation, reason)

    def delete_version(self, name: str, number: int) -> None:
        """Removes a version; AdapterInUse when an alias or a running request refers to it."""
        with self._writing:
            record = self.version(name, number)
            holders = [a.alias for a in self._aliases.of(name) if a.number == number]
            if holders:
                raise AdapterInUse(
                    f"{name}@{number} is the target of {', '.join(holders)}.",
                    item="number",
                    found=number,
                    hint="Move the alias to another version first.",
                )
            self._check_unused(record)
            self._delete(record)

    def delete_adapter(self, name: str) -> None:
        """Removes all aliases and versions of a name; AdapterInUse while requests run on one."""
        with self._writing:
            records = self.versions(name)
            for record in records:
                self._check_unused(record)
            for alias in self._aliases.of(name):
                self._aliases.remove(name, alias.alias, "adapter deleted")
            for record in records:
                self._delete(record)

    def files(self, digest: str) -> dict[str, Path]:
        """Name -> path of a version's files, each hashed again on this call.

        Also for a version deleted since it was resolved. Damaged bytes raise AdapterCorrupt, and
        the version is answered so from then on, until it is published again.
        """
        try:
            return self._blobs.files(digest)
        except AdapterCorrupt as error:
            with self._lock:
                self._corrupt[digest] = error
            raise

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a version by digest; AdapterNotFound or AdapterCorrupt."""
        return self._blobs.manifest(digest)

    def check_integrity(self) -> None:
        """AssertionError unless every alias targets a version that exists with that digest."""
        with self._lock:
            versions = {name: dict(records) for name, records in self._versions.items()}
        for name, records in versions.items():
            for alias in self._aliases.of(name):
                if (name, alias.number) in self._damaged:
                    continue
                target = records.get(alias.number)
                assert target is not None, f"{name}@{alias.alias} targets nothing"
                assert target.digest == alias.digest, f"{name}@{alias.alias} has another digest"

    def _alias_target(self, name: str, alias: str) -> int:
        record = self._aliases.current(name, alias)
        if record is not None:
            return record.number
        aliases = [f"{name}@{a.alias}" for a in self.aliases(name)]
        raise not_found("alias", f"{name}@{alias}", aliases)

    def _by_digest(self, digest: str) -> VersionRecord:
        with self._lock:
            found = [r for v in self._versions.values() for r in v.values() if r.digest == digest]
        if not found and digest in self._corrupt:
            raise self._corrupt[digest]
        if not found:
            raise AdapterNotFound(f"there is no version {digest}.", item="adapter", found=digest)
        return min(found, key=lambda record: (record.adapter_name, record.number))

    def _append(self, name: str, manifest: Manifest, digest: str) -> VersionRecord:
        log = self._log(name)
        while True:
            number = log.last_number() + 1
            if number > self._last.get(name, 0) + 1:
                self._reload(name)  # another process has published, perhaps this very content
                if existing := self.find(name, digest):
                    return existing
            entry = log.append(number, {"version": digest, "verified": manifest.base.declared})
            if entry is not None:
                record = _record(name, number, entry, manifest)
                with self._lock:
                    self._versions.setdefault(name, {})[number] = record
                    self._last[name] = number
                return record

    def _move(
        self, record: VersionRecord, alias: str, expected: int | None, reason: str
    ) -> AliasRecord:
        return self._aliases.move(
            record.adapter_name,
            alias,
            digest=record.digest,
            number=record.number,
            expected_generation=expected,
            reason=reason,
        )

    def _check_unused(self, record: VersionRecord) -> None:
        if self._in_use(record.digest):
            raise AdapterInUse(
                f"running requests or a pin hold {record.adapter_name}@{record.number}.",
                item="adapter",
                found=record.digest,
                hint="Move its aliases away, unload it, and retry when its requests have ended.",
            )

    def _damaged_names(self, digest: str) -> set[str]:
        with self._lock:
            return {name for (name, _), damage in self._damaged.items() if damage.found == digest}

    def _delete(self, record: VersionRecord) -> None:
        self._log(record.adapter_name).delete(record.number, "deleted")
        with self._lock:
            self._versions[record.adapter_name].pop(record.number, None)

    def _reload(self, name: str) -> None:
        records: dict[int, VersionRecord] = {}
        damaged: dict[int, AdapterCorrupt] = {}
        last = self._log(name).last_number()
        for number, entry in self._log(name).entries():
            if isinstance(entry, AdapterCorrupt):
                damaged[number] = entry
                continue
            try:
                manifest = self._blobs.manifest(entry["version"])
                records[number] = _record(name, number, entry, manifest)
            except PolygraftError as error:
                # Why not raise: one damaged version must not keep the others from being served.
                damaged[number] = AdapterCorrupt(str(error), found=entry["version"])
        with self._lock:
            self._versions[name] = records
            self._last[name] = last
            for known in [key for key in self._damaged if key[0] == name]:
                del self._damaged[known]
            for number, damage in damaged.items():
                self._damaged[name, number] = damage
                if damage.found is not None:
                    self._corrupt[str(damage.found)] = damage

    def _log(self, name: str) -> Log:
        return Log(self._store, f"versions/{name_path(name)}/")


def _record(name: str, number: int, entry: Mapping[str, Any], manifest: Manifest) -> VersionRecord:
    return VersionRecord(
        adapter_name=name,
        number=number,
        digest=entry["version"],
        manifest=manifest,
        verified=entry["verified"],
        created_at=entry["at"],
    )
