"""Names, numbered versions and aliases over a store. The store is the truth, this its index.

Thread-safe. Reads never touch the store, so an event loop may call them; writes block until they
are durable. Publishing goes blobs, manifest, version number, alias: each step is create-only, so
a crash between any two leaves nothing half visible and a repeat completes it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polygraft.adapters.alias_records import (
    AliasMove,
    AliasRecord,
    Target,
    check_reason,
    check_targets,
)
from polygraft.adapters.aliases import AliasBook
from polygraft.adapters.blobs import Blobs, keys_of
from polygraft.adapters.changes import SharedStore
from polygraft.adapters.claims import claim
from polygraft.adapters.errors import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterInvalid,
    AdapterNotFound,
    AliasConflict,
)
from polygraft.adapters.events import AdapterEvent, EventKind, event_of_move
from polygraft.adapters.failpoints import failpoint
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
from polygraft.adapters.stores.protocol import Store
from polygraft.adapters.version_table import VersionRecord, VersionTable

__all__ = ["Registry", "VersionRecord"]

VERSIONS, ALIASES = "versions/", "aliases/"


class Registry:
    """The adapters of one store.

    `in_use(digest)` says whether requests or a pin hold a version; deletes are refused then.
    """

    def __init__(
        self, store: Store, *, in_use: Callable[[str], bool] = lambda digest: False
    ) -> None:
        self._store = SharedStore(store)
        self._in_use = in_use
        self._blobs = Blobs(self._store)
        self._observe: Callable[[AdapterEvent], None] = lambda event: None
        self._aliases = AliasBook(self._store, lambda record: self._observe(event_of_move(record)))
        self._writing = threading.Lock()  # one writer of this process at a time
        self._table = VersionTable()
        # Versions that are published but whose bytes were found damaged, by digest.
        self._corrupt: dict[str, AdapterCorrupt] = {}
        self._listed: dict[str, int] = {}  # hash of the keys that a name had when it was read
        self._is_behind = True  # what other processes wrote has not all been read
        self.refresh()

    def refresh(self) -> None:
        """Reads names, versions and aliases from the store, with what other processes wrote."""
        self._is_behind = True
        self._store.skip()  # before the logs are read: a change told twice does no harm
        keys = list(self._store.list(VERSIONS))
        self._store.fetch(keys)
        found = {path_name(path): list(of) for path, of in itertools.groupby(keys, _path)}
        for name in {*found, *self._table.names()}:
            # Why not all: a running server does this too, and must not stop for it.
            if self._listed.get(name) != (listed := hash(tuple(found.get(name, ())))):
                with self._writing:
                    self._reload(name, None if name in self._listed else found[name])
                self._listed[name] = listed
        self._blobs.fetch_manifests(self._table.digests())
        with self._writing:
            self._aliases.load()
        self._is_behind = False

    def follow(self) -> None:
        """Takes in what other processes have written since the last call.

        Costs one listing of what is new when that is nothing. Raises Unavailable; the next call
        then reads everything again. One thread calls it.
        """
        if not self._is_behind:
            self._is_behind = True
            keys = self._store.poll()
            if keys is not None:
                self._take_in(keys)
                self._is_behind = False
                return
        self.refresh()

    def observe(self, observer: Callable[[AdapterEvent], None]) -> None:
        """From now on `observer` is told of what changes here, by whichever process. It must be
        quick, and is called from the thread that writes or follows.
        """
        self._observe = observer

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        return self._table.names()

    def versions(self, name: str) -> list[VersionRecord]:
        """The versions of a name by number, without damaged ones; AdapterNotFound for an unknown
        name.
        """
        return [record for record in self._known(name).values() if self._is_readable(record)]

    def num_versions(self, name: str) -> int:
        """How many versions a name has; AdapterNotFound for an unknown name. Reads no manifest."""
        return len(self._known(name))

    def version(self, name: str, number: int) -> VersionRecord:
        """One version; AdapterNotFound lists what exists, AdapterCorrupt says what is damaged."""
        record = self._table.get(name, number)
        if record is None:
            existing = [f"{name}@{known}" for known in self._known(name)]
            raise not_found("version", f"{name}@{number}", existing)
        return self._readable(record)

    def aliases(self, name: str) -> list[AliasRecord]:
        """The aliases of a name; AdapterNotFound for an unknown name."""
        self._known(name)
        return self._aliases.of(name)

    def alias_history(self, name: str, alias: str) -> list[AliasRecord]:
        """All moves of an alias, the oldest first."""
        return self._aliases.history(name, alias)

    def alias(self, name: str, alias: str) -> AliasRecord | None:
        """Where an alias of a name points; None for a name without it."""
        return self._aliases.current(name, alias)

    def live(self, name: str) -> AliasRecord | None:
        """Where `live` of a name points; None for a name without it."""
        return self.alias(name, LIVE)

    def find(self, name: str, digest: str) -> VersionRecord | None:
        """The lowest-numbered version of a name with this content; None if there is none."""
        found = (r for r in self._table.with_digest(digest) if r.adapter_name == name)
        return min(found, key=lambda record: record.number, default=None)

    def resolve(self, reference: str) -> VersionRecord:
        """The version that a reference means now; of an alias with a canary, the one in charge.

        Raises InvalidRequest for a malformed one, AdapterNotFound naming what exists, and
        AdapterCorrupt for a version whose stored bytes were found damaged.
        """
        return self.route(reference, None)[0]

    def route(
        self, reference: str, request_key: str | None
    ) -> tuple[VersionRecord, AliasRecord | None]:
        """The version that serves a request of this key, and the alias that chose it, if one did.

        Raises as `resolve`.
        """
        parsed = parse_reference(reference)
        if parsed.digest:
            return self._by_digest(parsed.digest), None
        if parsed.number:
            return self.version(parsed.name, parsed.number), None
        alias = self._existing_alias(parsed.name, parsed.alias or LIVE)
        return self.version(parsed.name, alias.target_for(request_key).number), alias

    def publish(
        self, name: str, manifest: Manifest, files: Mapping[str, Path], *, proven: bool = False
    ) -> VersionRecord:
        """Stores the files and gives them the next number of `name`; the first becomes `live`.

        The same content under the same name returns the existing record. Files that do not match
        the manifest raise UploadCorrupt.
        """
        check_name(name)
        with claim(self._store, keys_of(manifest)):
            digest = self._blobs.put(manifest, files)
            self._corrupt.pop(digest, None)
            with self._writing:
                record = self.find(name, digest) or self._append(name, manifest, digest, proven)
                with contextlib.suppress(AliasConflict):  # another process was first
                    if self.live(name) is None:
                        first = AliasMove((Target(digest, record.number),), 0, "first version")
                        self._aliases.move(name, LIVE, first)
        failpoint("publish.reply")
        return record

    def move_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        expected_generation: int | None = None,
        reason: str = "",
        by: str = "",
    ) -> AliasRecord:
        """Points an alias at one version; AliasConflict unless it is at `expected_generation`.

        None moves unconditionally, 0 demands that the alias does not exist yet.
        """
        targets = (Target(self.version(name, number).digest, number),)
        return self.write_alias(name, alias, AliasMove(targets, expected_generation, reason, by))

    def write_alias(self, name: str, alias: str, move: AliasMove) -> AliasRecord:
        """Writes a move. Raises AliasConflict, GateRefused, AdapterNotFound and InvalidRequest."""
        check_alias(alias)
        check_reason(move.reason)
        check_targets(move.targets)
        with self._writing:
            for target in move.targets:
                self._check_target(name, target)
            moved = self._aliases.move(name, alias, move)
        failpoint("alias.reply")
        return moved

    def remove_alias(
        self,
        name: str,
        alias: str,
        *,
        expected_generation: int | None = None,
        reason: str = "",
        by: str = "",
    ) -> None:
        """Takes an alias away. Raises AliasConflict and AdapterNotFound."""
        check_reason(reason)
        with self._writing:
            self._existing_alias(name, alias)
            self._aliases.remove(name, alias, reason, by, expected_generation)

    def delete_version(self, name: str, number: int) -> None:
        """Removes a version; AdapterInUse when an alias or a running request refers to it."""
        with self._writing:
            record = self.version(name, number)
            holders = [
                alias.alias
                for alias in self._aliases.of(name)
                if number in (target.number for target in alias.targets)
            ]
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
            records = list(self._known(name).values())
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
            self._corrupt[digest] = error
            raise

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a version by digest; AdapterNotFound or AdapterCorrupt."""
        return self._blobs.manifest(digest)

    def check_integrity(self) -> None:
        """AssertionError unless every alias targets a version that exists with that digest."""
        for name in self._table.names():
            records = self._table.of(name)
            for alias in self._aliases.of(name):
                for target in alias.targets:
                    if self._table.is_damaged(name, target.number):
                        continue
                    found, where = records.get(target.number), f"{name}@{alias.alias}"
                    assert found is not None, f"{where} targets nothing"
                    assert found.digest == target.digest, f"{where} has another digest"

    def _existing_alias(self, name: str, alias: str) -> AliasRecord:
        record = self._aliases.current(name, alias)
        if record is not None:
            return record
        aliases = [f"{name}@{a.alias}" for a in self.aliases(name)]
        raise not_found("alias", f"{name}@{alias}", aliases)

    def _check_target(self, name: str, target: Target) -> None:
        """It may have been deleted, and by content this one, since the move was thought up."""
        if self.version(name, target.number).digest != target.digest:
            raise not_found("version", f"{name}@{target.number} of {target.digest}", [])

    def _by_digest(self, digest: str) -> VersionRecord:
        found = self._table.with_digest(digest)
        if not found:
            raise AdapterNotFound(f"there is no version {digest}.", item="adapter", found=digest)
        return self._readable(found[0])

    def _append(self, name: str, manifest: Manifest, digest: str, proven: bool) -> VersionRecord:
        log = self._log(name)
        while True:
            number = log.last_number() + 1
            if number > self._table.last(name) + 1:
                self._reload(name)  # another process has published, perhaps this very content
                if existing := self.find(name, digest):
                    return existing
            failpoint("publish.version")
            verified = manifest.base.declared
            entry = log.append(number, {"version": digest, "verified": verified, "proven": proven})
            if entry is not None:
                record = self._record(name, number, entry)
                self._table.add(record)
                self._observe(_event(EventKind.PUBLISHED, record))
                return record

    def _check_unused(self, record: VersionRecord) -> None:
        if self._in_use(record.digest):
            raise AdapterInUse(
                f"running requests or a pin hold {record.adapter_name}@{record.number}.",
                item="adapter",
                found=record.digest,
                hint="Move its aliases away, unload it, and retry when its requests have ended.",
            )

    def _delete(self, record: VersionRecord) -> None:
        self._log(record.adapter_name).delete(record.number, "deleted")
        self._table.remove(record)
        self._observe(_event(EventKind.VERSION_DELETED, record))

    def _take_in(self, keys: Sequence[str]) -> None:
        names = {path_name(_path(key)) for key in keys if key.startswith(VERSIONS)}
        for name in sorted(names):
            with self._writing:
                self._reload(name)
            self._blobs.fetch_manifests(r.digest for r in self._table.of(name).values())
        moved = [key for key in keys if key.startswith(ALIASES)]
        if moved:
            with self._writing:
                self._aliases.load(moved)

    def _reload(self, name: str, keys: Sequence[str] | None = None) -> None:
        """`keys`: those of its log, where they have been listed already."""
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
            self._observe(_event(EventKind.VERSION_DELETED, before[number]))
        for number in sorted(records.keys() - before.keys()):
            self._observe(_event(EventKind.PUBLISHED, records[number]))

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

    def _known(self, name: str) -> dict[int, VersionRecord]:
        """The versions of a name by number, damaged bytes or not; AdapterNotFound."""
        records = self._table.of(name)
        if not records:
            raise not_found("adapter", name, self.names())
        return records

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
            self._corrupt[record.digest] = damaged
            raise damaged from error
        return record

    def _log(self, name: str) -> Log:
        return Log(self._store, f"{VERSIONS}{name_path(name)}/")


def _path(key: str) -> str:
    """The part of a version record's key that stands for the name."""
    return key.removeprefix(VERSIONS).rpartition("/")[0]


def _event(kind: EventKind, record: VersionRecord) -> AdapterEvent:
    return AdapterEvent(kind, record.adapter_name, record.number, record.digest)
