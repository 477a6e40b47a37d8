"""The content-addressed half of a store: files by their sha256, manifests by their digest.

Whatever is read is hashed again, so bytes that rot on the disk are never served.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

from polygraft.adapters.canonical import sha256_digest
from polygraft.adapters.errors import AdapterCorrupt, AdapterNotFound, UploadCorrupt
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.files import hash_file
from polygraft.adapters.manifest import FileRecord, Manifest, canonical_json, parse_manifest
from polygraft.adapters.stores.protocol import Store

BLOBS = "blobs/sha256/"
MANIFESTS = "manifests/sha256/"
_MANIFESTS_KEPT = 4096  # read manifests in memory, the most recently used ones


class Blobs:
    """Puts and gets the files of versions. Thread-safe; knows no names."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()

    def put(self, manifest: Manifest, files: Mapping[str, Path]) -> str:
        """Stores files, then the manifest; returns its digest. UploadCorrupt on a mismatch.

        The caller holds a claim on `keys_of(manifest)` until a version names the digest.
        """
        records = {record.name: record for record in manifest.files}
        if set(records) != set(files):
            odd = sorted(set(records) ^ set(files))
            raise UploadCorrupt(
                f"the manifest lists {', '.join(sorted(records))}, but the files are "
                f"{', '.join(sorted(files))}.",
                item=odd[0],
                hint="Upload exactly the files that the manifest lists.",
            )
        failpoint("publish.files")
        for record in manifest.files:
            self._put_file(record, files[record.name])
        digest = manifest.digest
        failpoint("publish.manifest")
        self._put_manifest(digest, canonical_json(manifest))
        self._remember(digest, manifest)
        return digest

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a version; AdapterNotFound, or AdapterCorrupt if its bytes changed."""
        with self._lock:
            known = self._manifests.get(digest)
            if known is not None:
                self._manifests.move_to_end(digest)
                return known
        manifest = parse_manifest(self._read_manifest(digest))
        self._remember(digest, manifest)
        return manifest

    def fetch_manifests(self, digests: Iterable[str]) -> None:
        """Brings manifests near, so that `manifest` is quick; those that are missing are fine."""
        self._store.fetch([manifest_key(digest) for digest in digests])

    def files(self, digest: str) -> dict[str, Path]:
        """Name -> path of the version's files; AdapterCorrupt unless all hashes match."""
        return {record.name: self._get_file(record) for record in self.manifest(digest).files}

    def has_copies(self, manifest: Manifest) -> bool:
        """Whether all files of a version are copied to this machine from a store elsewhere."""
        return all(self._store.has_copy(blob_key(record)) for record in manifest.files)

    def _remember(self, digest: str, manifest: Manifest) -> None:
        with self._lock:
            self._manifests[digest] = manifest
            self._manifests.move_to_end(digest)
            if len(self._manifests) > _MANIFESTS_KEPT:
                self._manifests.popitem(last=False)

    def _read_manifest(self, digest: str) -> bytes:
        key = manifest_key(digest)
        try:
            data = self._store.get(key)
            if sha256_digest(data) != digest and self._store.drop_copy(key):
                data = self._store.get(key)
        except KeyError:
            raise AdapterNotFound(f"there is no version {digest}.", item="adapter") from None
        if sha256_digest(data) != digest:
            raise AdapterCorrupt(f"the stored manifest of {digest} has changed.", found=digest)
        return data

    def _put_file(self, record: FileRecord, path: Path) -> None:
        if path.stat().st_size != record.size or hash_file(path) != record.sha256:
            raise UploadCorrupt(
                f"the file does not have the declared size {record.size} and sha256 "
                f"{record.sha256}.",
                file=record.name,
                hint="Upload it again.",
            )
        key = blob_key(record)
        # Why hash what is there: publishing again must repair a blob that rotted on the disk.
        if not self._store.create(key, path) and not self._is_intact(record):
            self._store.delete(key)
            self._store.create(key, path)

    def _put_manifest(self, digest: str, data: bytes) -> None:
        key = manifest_key(digest)
        if self._store.create(key, data) or self._store.get(key) == data:
            return
        if self._store.drop_copy(key) and self._store.get(key) == data:
            return
        self._store.delete(key)
        self._store.create(key, data)

    def _get_file(self, record: FileRecord) -> Path:
        if not self._is_intact(record):
            raise AdapterCorrupt(
                "the stored bytes are missing or no longer match their sha256.",
                file=record.name,
                found=record.sha256,
                hint="Publish the adapter again.",
            )
        return self._store.get_path(blob_key(record))

    def _is_intact(self, record: FileRecord) -> bool:
        key = blob_key(record)
        return self._matches(record) or (self._store.drop_copy(key) and self._matches(record))

    def _matches(self, record: FileRecord) -> bool:
        try:
            path = self._store.get_path(blob_key(record))
            return path.stat().st_size == record.size and hash_file(path) == record.sha256
        except (KeyError, FileNotFoundError):
            return False


def keys_of(manifest: Manifest) -> list[str]:
    """What a version consists of: its manifest and its files."""
    return [manifest_key(manifest.digest), *(blob_key(record) for record in manifest.files)]


def blob_key(record: FileRecord) -> str:
    """Where a file lies."""
    return BLOBS + record.sha256


def manifest_key(digest: str) -> str:
    """Where the manifest of a version lies."""
    return f"{MANIFESTS}{digest.removeprefix('sha256:')}.json"
