"""Names, numbered versions and aliases over a store. The store is the truth, this its index.

Thread-safe. Reads never touch the store, so an event loop may call them; writes block until they
are durable. Publishing goes blobs, manifest, version number, alias: each step is create-only, so
a crash between any two leaves nothing half visible and a repeat completes it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
    AliasConflict,
)
from polygraft.adapters.events import AdapterEvent, event_of_move
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.names import (
    LIVE,
    check_alias,
    check_name,
    not_found,
    parse_reference,
)
from polygraft.adapters.stores.protocol import Store
from polygraft.adapters.version_book import VERSIONS, VersionBook
from polygraft.adapters.version_table import VersionRecord

__all__ = ["Registry", "VersionRecord"]

ALIASES = "aliases/"


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
        self._versions = VersionBook(
            self._store, self._blobs, self._writing, lambda event: self._observe(event)
        )
        self._is_behind = True  # what other processes wrote has not all been read
        self.refresh()

    def refresh(self) -> None:
        """Reads names, versions and aliases from the store, with what other processes wrote."""
        self._is_behind = True
        self._store.skip()  # before the logs are read: a change told twice does no harm
        self._versions.load()
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
        return self._versions.names()

    def versions(self, name: str) -> list[VersionRecord]:
        """The versions of a name by number, without damaged ones; AdapterNotFound for an unknown
        name.
        """
        return self._versions.readable(name)

    def num_versions(self, name: str) -> int:
        """How many versions a name has; AdapterNotFound for an unknown name. Reads no manifest."""
        return len(self._versions.of(name))

    def version(self, name: str, number: int) -> VersionRecord:
        """One version; AdapterNotFound lists what exists, AdapterCorrupt says what is damaged."""
        return self._versions.version(name, number)

    def aliases(self, name: str) -> list[AliasRecord]:
        """The aliases of a name; AdapterNotFound for an unknown name."""
        self._versions.of(name)
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
        return self._versions.find(name, digest)

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
            return self._versions.with_digest(parsed.digest), None
        if parsed.number:
            return self.version(parsed.name, parsed.number), None
        alias = self._existing_alias(parsed.name, parsed.alias or LIVE)
        return self.version(parsed.name, alias.target_for(request_key).number), alias

    def publish(
        self,
        name: str,
        manifest: Manifest,
        files: Mapping[str, Path],
        *,
        proven: bool = False,
        first_is_live: bool = True,
    ) -> VersionRecord:
        """Stores the files and gives them the next number of `name`; the first becomes `live`.

        The same content under the same name returns the existing record. Files that do not match
        the manifest raise UploadCorrupt.
        """
        check_name(name)
        facts = {"verified": manifest.base.declared, "proven": proven}
        with claim(self._store, keys_of(manifest)):
            digest = self._blobs.put(manifest, files)
            self._versions.mended(digest)
            with self._writing:
                record = self.find(name, digest) or self._versions.append(name, digest, facts)
                with contextlib.suppress(AliasConflict):  # another process was first
                    if first_is_live and self.live(name) is None:
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
            self._versions.delete(record)

    def delete_adapter(self, name: str) -> None:
        """Removes all aliases and versions of a name; AdapterInUse while requests run on one."""
        with self._writing:
            records = list(self._versions.of(name).values())
            for record in records:
                self._check_unused(record)
            for alias in self._aliases.of(name):
                self._aliases.remove(name, alias.alias, "adapter deleted")
            for record in records:
                self._versions.delete(record)

    def files(self, digest: str) -> dict[str, Path]:
        """Name -> path of a version's files, each hashed again on this call.

        Also for a version deleted since it was resolved. Damaged bytes raise AdapterCorrupt, and
        the version is answered so from then on, until it is published again.
        """
        try:
            return self._blobs.files(digest)
        except AdapterCorrupt as error:
            self._versions.damaged(digest, error)
            raise

    def has_copies(self, manifest: Manifest) -> bool:
        """Whether the files of a version are on this machine's disk, the store being elsewhere."""
        return self._blobs.has_copies(manifest)

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a version by digest; AdapterNotFound or AdapterCorrupt."""
        return self._blobs.manifest(digest)

    def check_integrity(self) -> None:
        """AssertionError unless every alias targets a version that exists with that digest."""
        for name in self.names():
            records = self._versions.of(name)
            for alias in self._aliases.of(name):
                for target in alias.targets:
                    if self._versions.is_damaged(name, target.number):
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

    def _check_unused(self, record: VersionRecord) -> None:
        if self._in_use(record.digest):
            raise AdapterInUse(
                f"running requests or a pin hold {record.adapter_name}@{record.number}.",
                item="adapter",
                found=record.digest,
                hint="Move its aliases away, unload it, and retry when its requests have ended.",
            )

    def _take_in(self, keys: Sequence[str]) -> None:
        if published := [key for key in keys if key.startswith(VERSIONS)]:
            self._versions.load(published)
        if moved := [key for key in keys if key.startswith(ALIASES)]:
            with self._writing:
                self._aliases.load(moved)
