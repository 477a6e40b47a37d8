"""Uploads: staged, checked, validated, then published atomically. Transport-free, synchronous.

    begin(header) -> write(file_index, offset, data) ... -> finish() | abort()

Nothing that was staged can be resolved by anybody before `finish` has published it, and staging
is removed whatever happens; what a killed server left is swept by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polygraft.adapters.aliases import AliasRecord
from polygraft.adapters.errors import (
    AdapterIncompatible,
    InvalidRequest,
    Overloaded,
    PolygraftError,
)
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.adapters.self_test import Proof
from polygraft.adapters.staging import StagedUpload, Staging
from polygraft.adapters.upload_header import FileDeclaration, UploadHeader, check_header
from polygraft.adapters.validation import ValidatedUpload, validate_files
from polygraft.adapters.weights import AdapterWeights

__all__ = ["FileDeclaration", "PublishedUpload", "Upload", "UploadHeader", "Uploads"]


@dataclass(frozen=True, slots=True)
class PublishedUpload:
    """The outcome: the version, the alias moved to it, and what the uploader should know."""

    record: VersionRecord
    alias: AliasRecord | None
    warnings: list[str]


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


class Uploads:
    """Receives adapters for one base. Thread-safe; every method may block on I/O.

    `fits` is the device tier's: it says why an adapter could never be loaded here. `prove` is the
    numerical self-test; content that is published already is not tested again. At most
    `limits.max_uploads` run at once, and one is validated at a time, so that uploads cannot
    starve running requests.
    """

    def __init__(
        self,
        staging_dir: Path,
        registry: Registry,
        geometry: BaseGeometry,
        limits: AdapterLimits,
        *,
        fits: Callable[[AdapterWeights], str | None] = lambda weights: None,
        prove: Prove = not_run,
    ) -> None:
        self._registry = registry
        self._geometry = geometry
        self._limits = limits
        self._fits = fits
        self._run_test = prove
        self._staging = Staging(staging_dir)
        self._validating = threading.Lock()
        self._running = threading.BoundedSemaphore(limits.max_uploads)

    def begin(self, header: UploadHeader) -> Upload:
        """Checks the header and reserves space; raises as `check_header`, and Overloaded."""
        check_header(header, self._limits)
        if not self._running.acquire(blocking=False):
            raise Overloaded(
                f"{self._limits.max_uploads} uploads are running, the most at once.",
                reason="TOO_MANY_UPLOADS",
                allowed=self._limits.max_uploads,
            )
        try:
            return Upload(self, header, self._staging.open(header.files))
        except BaseException:
            self._running.release()
            raise

    def staging_files(self) -> int:
        """Files of uploads in progress; 0 when there are none."""
        return self._staging.num_files()

    def close(self) -> None:
        """Removes the staging folder; uploads in progress fail."""
        self._staging.close()

    def _validate(self, header: UploadHeader, files: Mapping[str, Path]) -> ValidatedUpload:
        with self._validating:
            validated = validate_files(header, files, self._geometry, self._limits)
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
            warnings.append(f"the same content was already published as number {known.number}")
        record = self._registry.publish(
            header.name, validated.manifest, validated.files, proven=proof.proven
        )
        alias = None
        if header.alias is not None:
            alias = self._registry.move_alias(
                header.name, header.alias, record.number, reason="upload"
            )
        elif live is None:
            alias = self._registry.live(header.name)
        return PublishedUpload(record, alias, warnings)

    def _ended(self) -> None:
        self._running.release()


class Upload:
    """One upload. Calls come from one caller at a time, except `abort`, which may come anytime."""

    def __init__(self, uploads: Uploads, header: UploadHeader, staged: StagedUpload) -> None:
        self.header = header
        self._uploads = uploads
        self._staged = staged
        self._lock = threading.Lock()
        self._ended = False
        self._aborted = False

    def write(self, file_index: int, offset: int, data: bytes) -> None:
        """Appends bytes to a file. Any error ends the upload and removes what was staged."""
        try:
            self._staged.write(file_index, offset, data)
        except BaseException:
            self.abort()
            raise

    def finish(self) -> PublishedUpload:
        """Validates and publishes; durable when it returns. Staging is gone in any case.

        Raises UploadCorrupt, AdapterInvalid, AdapterUnsupported or AdapterIncompatible.
        """
        with self._lock:
            if self._ended:
                raise InvalidRequest("the upload has ended.", reason="UPLOAD_ENDED")
            try:
                files = self._staged.complete()
                validated = self._uploads._validate(self.header, files)
                proof = self._uploads._prove(self.header, validated)
                if self._aborted:
                    raise InvalidRequest("the upload was aborted.", reason="UPLOAD_ENDED")
                return self._uploads._publish(self.header, validated, proof)
            finally:
                self._end()

    def abort(self) -> None:
        """Removes what was staged; again, or after `finish`, is fine. Waits for `finish`."""
        self._aborted = True
        with self._lock:
            if not self._ended:
                self._end()

    def _end(self) -> None:
        self._ended = True
        self._staged.remove()
        self._uploads._ended()
