"""Uploads by their ids: begun, taken up again, published or swept. Transport-free, synchronous.

    upload = begin(header) -> upload.write(file_index, offset, data) ... -> upload.finish()
    end(upload)  whatever happened; unfinished bytes are kept for an hour

Nothing that is staged can be resolved by anybody before `finish` has published it. What a stopped
or killed server leaves is taken up by the next one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from polygraft.adapters.alias_records import AliasRecord
from polygraft.adapters.aliases import check_ungated
from polygraft.adapters.errors import (
    AdapterIncompatible,
    PolygraftError,
    UploadConflict,
    UploadNotFound,
)
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.known_content import find_content
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.adapters.self_test import Proof
from polygraft.adapters.staging import StagedUpload, Staging
from polygraft.adapters.upload import PublishedUpload, Upload, UploadState, UploadStatus
from polygraft.adapters.upload_header import (
    FileDeclaration,
    UploadHeader,
    check_header,
    check_upload_id,
)
from polygraft.adapters.upload_quota import UploadQuota
from polygraft.adapters.validation import ValidatedUpload, validate_files
from polygraft.adapters.weights import AdapterWeights

__all__ = ["FileDeclaration", "PublishedUpload", "Upload", "UploadHeader", "UploadState", "Uploads"]

MAX_REMEMBERED = 1024  # uploads that are over, whose end GetUpload still tells

Validate = Callable[
    [UploadHeader, Mapping[str, Path], BaseGeometry, AdapterLimits], ValidatedUpload
]


class Prove(Protocol):
    """Runs an adapter that passed validation, on the engine that is to serve it."""

    def __call__(
        self, name: str, manifest: Manifest, files: Mapping[str, Path], *, allow_no_effect: bool
    ) -> Proof:
        """Raises AdapterInvalid or AdapterIncompatible with the numbers that are wrong."""
        ...


def not_run(
    name: str, manifest: Manifest, files: Mapping[str, Path], *, allow_no_effect: bool
) -> Proof:
    """Where no engine is at hand: nothing is proven."""
    return Proof(proven=False)


@dataclass(frozen=True, slots=True)
class UploadStats:
    """Counts of now, and in `ended` of all since the start, by "published" (bytes came), "known"
    (none were needed), "rejected" and "expired"."""

    running: int
    unfinished: int
    staged_bytes: int
    ended: Mapping[str, int]


class Uploads:
    """Receives adapters for one base. Thread-safe; every method may block on I/O.

    `fits` is the device tier's: it says why an adapter could never be loaded here. `validate`
    reads the files; one upload is validated at a time, so that uploads cannot starve requests.
    `prepare` is called when bytes begin to come, so that it is ready when they have.
    `prove` is the numerical self-test; content that is published already is not tested again.
    """

    def __init__(
        self,
        staging_dir: Path,
        registry: Registry,
        geometry: BaseGeometry,
        limits: AdapterLimits,
        *,
        fits: Callable[[AdapterWeights], str | None] = lambda weights: None,
        validate: Validate = validate_files,
        prepare: Callable[[], None] = lambda: None,
        prove: Prove = not_run,
    ) -> None:
        self._registry = registry
        self._geometry = geometry
        self._limits = limits
        self._fits = fits
        self._validate_files = validate
        self._prepare = prepare
        self._run_test = prove
        self._validating = threading.Lock()
        self._quota = UploadQuota(limits)
        self._beginning = threading.Lock()  # one at a time makes or replaces an upload
        self._table = threading.Lock()
        self._unfinished: dict[str, Upload] = {}
        self._over: OrderedDict[str, Upload] = OrderedDict()
        self._ended = dict.fromkeys(("published", "known", "rejected", "expired"), 0)
        self._staging = Staging(staging_dir)
        for staged in self._staging.found():
            self._quota.adopt(staged.header.namespace(), staged.header.size())
            upload = self._upload(staged, idle=staged.age())
            self._unfinished[upload.header.id()] = upload

    def begin(self, header: UploadHeader) -> Upload:
        """The upload with this header, new or where it was left; give it back with `end`.

        Raises as `check_header`, Overloaded when too much is under way, UploadConflict when
        another header has the id, and GateRefused for an alias that demands a gate.
        """
        check_header(header, self._limits)
        if header.alias is not None:
            check_ungated(self._registry.alias(header.name, header.alias))
        header = replace(header, upload_id=header.id())
        self._quota.start(header.namespace())
        try:
            with self._beginning:
                return self._find(header) or self._new(header)
        except BaseException:
            self._quota.end(header.namespace())
            raise

    def end(self, upload: Upload) -> None:
        """A client that began the upload leaves it; once for every `begin`."""
        upload.leave()
        self._quota.end(upload.header.namespace())

    def published(self, header: UploadHeader) -> PublishedUpload | None:
        """The outcome without an upload, when the name has this very content; else None.

        Moves the alias that the header asks for. Stored bytes are hashed first: content that has
        rotted is to be uploaded again.
        """
        check_header(header, self._limits)
        self._quota.start(header.namespace())  # it reads files as an upload does
        try:
            record = find_content(self._registry, header, self._geometry)
            if record is None:
                return None
            alias = self._move_alias(header, record)
            with self._table:
                self._ended["known"] += 1
            return PublishedUpload(record, alias, [_already_published(record)])
        finally:
            self._quota.end(header.namespace())

    def status(self, upload_id: str) -> UploadStatus:
        """How far an upload has come; UploadNotFound when nobody knows it."""
        check_upload_id(upload_id)
        with self._table:
            upload = self._unfinished.get(upload_id) or self._over.get(upload_id)
        if upload is None:
            raise UploadNotFound(
                f"there is no upload {upload_id}.",
                item="upload_id",
                found=upload_id,
                hint="Begin it with its header.",
            )
        return upload.status()

    def sweep(self) -> int:
        """Expires uploads that nobody goes on with; how many."""
        with self._table:
            uploads = list(self._unfinished.values())
        return sum(upload.expire(self._limits.upload_idle_seconds) for upload in uploads)

    def stats(self) -> UploadStats:
        """Counts for an operator."""
        with self._table:
            unfinished, ended = len(self._unfinished), dict(self._ended)
        return UploadStats(self._quota.num_running(), unfinished, self._quota.staged_bytes(), ended)

    def num_running(self) -> int:
        """Uploads that a client is sending now."""
        return self._quota.num_running()

    def num_validating(self) -> int:
        """Uploads that are being checked and published."""
        with self._table:
            uploads = list(self._unfinished.values())
        return sum(upload.state is UploadState.VALIDATING for upload in uploads)

    def staging_files(self) -> int:
        """Files of unfinished uploads, running or not."""
        return self._staging.num_files()

    def close(self) -> None:
        """Unfinished uploads stay on the disk for the next server."""
        with self._table:
            uploads = list(self._unfinished.values())
        for upload in uploads:
            upload.close()
        self._staging.close()

    def _find(self, header: UploadHeader) -> Upload | None:
        with self._table:
            upload = self._unfinished.get(header.id())
        if upload is None:
            return None
        if upload.header != header:
            raise UploadConflict(
                f"upload {header.id()} has begun with another header.",
                item="upload_id",
                found=header.id(),
                hint="Choose another upload_id, or leave it empty.",
            )
        return upload if upload.join() else None

    def _new(self, header: UploadHeader) -> Upload:
        self._quota.stage(header.namespace(), header.size())
        try:
            self._prepare()
            upload = self._upload(self._staging.open(header))
        except BaseException:
            self._quota.unstage(header.namespace(), header.size())
            raise
        upload.join()
        with self._table:
            self._over.pop(header.id(), None)
            self._unfinished[header.id()] = upload
        return upload

    def _upload(self, staged: StagedUpload, *, idle: float = 0.0) -> Upload:
        def publish(header: UploadHeader, files: Mapping[str, Path]) -> PublishedUpload:
            validated = self._validate(header, files)
            return self._publish(header, validated, self._prove(header, validated))

        return Upload(staged, publish, on_end=self._settle, idle=idle)

    def _settle(self, upload: Upload) -> None:
        """Its bytes are gone; how it ended is remembered for a while."""
        upload_id = upload.header.id()
        self._quota.unstage(upload.header.namespace(), upload.header.size())
        with self._table:
            self._ended[upload.state.value] += 1
            if self._unfinished.get(upload_id) is upload:
                del self._unfinished[upload_id]
                self._over[upload_id] = upload
            while len(self._over) > MAX_REMEMBERED:
                self._over.popitem(last=False)

    def _validate(self, header: UploadHeader, files: Mapping[str, Path]) -> ValidatedUpload:
        with self._validating:
            validated = self._validate_files(header, files, self._geometry, self._limits)
        if why := self._fits(validated.weights):
            raise AdapterIncompatible(
                f"this server can never load it: {why}.",
                reason="NO_ADAPTER_ROWS",
                hint="Retrain with a lower rank, or start the server with a larger pool.",
            )
        return validated

    def _prove(self, header: UploadHeader, validated: ValidatedUpload) -> Proof:
        """Outside the lock of the validation: it waits for running requests."""
        with suppress(PolygraftError):  # unknown, or damaged and repaired by this upload
            return Proof(self._registry.resolve(validated.manifest.digest).proven)
        return self._run_test(
            header.name,
            validated.manifest,
            validated.files,
            allow_no_effect=header.allow_no_effect,
        )

    def _publish(
        self, header: UploadHeader, validated: ValidatedUpload, proof: Proof
    ) -> PublishedUpload:
        warnings = [*validated.warnings, *proof.warnings]
        live = self._registry.live(header.name)
        known = self._registry.find(header.name, validated.manifest.digest)
        if known is not None:
            warnings.append(_already_published(known))
        record = self._registry.publish(
            header.name,
            validated.manifest,
            validated.files,
            proven=proof.proven,
            first_is_live=not header.no_alias,
        )
        alias = self._move_alias(header, record)
        if alias is None and live is None and not header.no_alias:
            alias = self._registry.live(header.name)
        return PublishedUpload(record, alias, warnings)

    def _move_alias(self, header: UploadHeader, record: VersionRecord) -> AliasRecord | None:
        """The alias that the header asks for; it is not moved again to where it points."""
        if header.alias is None:
            return None
        alias = self._registry.alias(header.name, header.alias)
        if alias is not None and [t.number for t in alias.targets] == [record.number]:
            return alias
        return self._registry.move_alias(header.name, header.alias, record.number, reason="upload")


def _already_published(record: VersionRecord) -> str:
    return f"the same content was already published as number {record.number}"
