"""Whether a name has a version with exactly the files that an upload declares."""

from __future__ import annotations

from polygraft.adapters.errors import AdapterCorrupt, AdapterNotFound
from polygraft.adapters.files import MANIFEST_FILE
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.manifest import Manifest, check_base
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.adapters.upload_header import UploadHeader

# What `minimal_manifest` sets: the manifest of files that were uploaded without one.
MINIMAL_FIELDS = frozenset({"schema_id", "kind", "servable", "files", "format", "base"})


def find_content(
    registry: Registry, header: UploadHeader, geometry: BaseGeometry
) -> VersionRecord | None:
    """The version whose bytes need not be sent again; None when they must.

    The stored bytes are hashed first. Only versions of the very name are looked at: whether some
    other name has a file is not for this caller to know.
    """
    try:
        versions = registry.versions(header.name)
    except AdapterNotFound:
        return None
    if registry.live(header.name) is None:
        return None  # its publish was cut off; publishing again completes it
    for record in versions:
        if not _is_declared(record.manifest, record.digest, header):
            continue
        if not (check_base(record.manifest, geometry) or header.allow_unverified_base):
            return None
        try:
            registry.files(record.digest)
        except (AdapterCorrupt, AdapterNotFound):
            return None  # uploading it again is what repairs it
        return record
    return None


def _is_declared(manifest: Manifest, digest: str, header: UploadHeader) -> bool:
    declared = {file.name: (file.size, file.sha256) for file in header.files}
    sent_manifest = declared.pop(MANIFEST_FILE, None)
    if declared != {file.name: (file.size, file.sha256) for file in manifest.files}:
        return False
    if sent_manifest is not None:
        return digest == f"sha256:{sent_manifest[1]}"
    return manifest.model_fields_set <= MINIMAL_FIELDS
