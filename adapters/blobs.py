"""The content-addressed half of a store: files by their sha256, manifests by their digest.

Whatever is read is hashed again, so bytes that rot on the disk are never served.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from polygraft.adapters.canonical import sha256_digest
from polygraft.adapters.errors import AdapterCorrupt, AdapterNotFound, UploadCorrupt
from polygraft.adapters.files import hash_file
from polygraft.adapters.manifest import FileRecord, Manifest, canonical_json, parse_manifest
from polygraft.adapters.store import Store


class Blobs:
    """Puts and gets the files of versions. Thread-safe; knows no names."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._manifests: dict[str, Manifest] = {}

    def put(self, manifest: Manifest, files: Mapping[str, Path]) -> str:
        """Stores files, then the manifest; returns its digest. UploadCorrupt on a mismatch."""
        records = {record.name: record for record in manifest.files}
        if set(records) != set(files):
            odd = sorted(set(records) ^ set(files))
            raise UploadCorrupt(
                f"the manifest lists {', '.join(sorted(records))}, but the files are "
                f"{', '.join(sorted(files))}.",
                item=odd[0],
                hint="Upload exactly the files that the manifest lists.",
            )
        for record in manifest.files:
            self._put_file(record, files[record.name])
        digest = manifest.digest
        self._put_manifest(digest, canonical_json(manifest))
        with self._lock:
            self._manifests[digest] = manifest
        return digest

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a version; AdapterNotFound, or AdapterCorrupt if its bytes changed."""
        with self._lock:
            known = self._manifests.get(digest)
        if known is not None:
            return known
        try:
            data = self._store.get(_manifest_key(digest))
        except KeyError:
            raise AdapterNotFound(f"there is no version {digest}.", item="adapter") from None
        if sha256_digest(data) != digest:
            raise AdapterCorrupt(f"the stored manifest of {digest} has changed.", found=digest)
        manifest = parse_manifest(data)
        with self._lock:
            return self._manifests.setdefault(digest, manifest)

    def files(self, digest: str) -> dict[str, Path]:
        """Name -> path of the version's files; AdapterCorrupt unless all hashes match."""
        return {record.name: self._get_file(record) for record in self.manifest(digest).files}

    def _put_file(self, record: FileRecord, path: Path) -> None:
        if path.stat().st_size != record.size or hash_file(path) != record.sha256:
            raise UploadCorrupt(
                f"the file does not have the declared size {record.size} and sha256 "
                f"{record.sha256}.",
                file=record.name,
                hint="Upload it again.",
            )
        key = _blob_key(record)
        # Why hash what is there: publishing again must repair a blob that rotted on the disk.
        if not self._store.create(key, path) and not self._is_intact(record):
            self._store.delete(key)
            self._store.create(key, path)

    def _put_manifest(self, digest: str, data: bytes) -> None:
        key = _manifest_key(digest)
        if not self._store.create(key, data) and self._store.get(key) != data:
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
        return self._store.get_path(_blob_key(record))

    def _is_intact(self, record: FileRecord) -> bool:
        try:
            path = self._store.get_path(_blob_key(record))
        except KeyError:
            return False
        return path.stat().st_size == record.size and hash_file(path) == record.sha256


def _blob_key(record: FileRecord) -> str:
    return f"blobs/sha256/{record.sha256}"


def _manifest_key(digest: str) -> str:
    return f"manifests/sha256/{digest.removeprefix('sha256:')}.json"
