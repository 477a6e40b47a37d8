"""Between the messages of adapters.proto and the records of `polygraft.adapters`."""

from __future__ import annotations

from contextlib import suppress

from polygraft.adapters.errors import AdapterCorrupt, AdapterIncompatible, AdapterNotFound
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.manifest import canonical_json, check_base
from polygraft.adapters.names import LIVE
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.adapters.residency import Residency, Tier
from polygraft.adapters.upload import PublishedUpload, UploadState, UploadStatus
from polygraft.adapters.upload_header import FileDeclaration, UploadHeader
from polygraft.protos import adapters_pb2 as pb
from polygraft.server.grpc.alias_messages import timestamp, write_alias

_KINDS = {
    "lora": pb.ADAPTER_KIND_LORA,
    "soft_prompt": pb.ADAPTER_KIND_SOFT_PROMPT,
    "prefix": pb.ADAPTER_KIND_PREFIX,
}
_TIERS = {
    Tier.STORE: pb.TIER_STORE,
    Tier.LOADING: pb.TIER_LOADING,
    Tier.HOST: pb.TIER_HOST,
    Tier.DEVICE: pb.TIER_DEVICE,
    Tier.FAILED: pb.TIER_FAILED,
}
_STATES = {
    UploadState.RECEIVING: pb.UPLOAD_STATE_RECEIVING,
    UploadState.VALIDATING: pb.UPLOAD_STATE_VALIDATING,
    UploadState.PUBLISHED: pb.UPLOAD_STATE_PUBLISHED,
    UploadState.REJECTED: pb.UPLOAD_STATE_REJECTED,
    UploadState.EXPIRED: pb.UPLOAD_STATE_EXPIRED,
}


def read_header(message: pb.UploadHeader) -> UploadHeader:
    """What is to be published."""
    return UploadHeader(
        name=message.adapter_name,
        files=tuple(FileDeclaration(f.name, f.size_bytes, f.sha256) for f in message.files),
        alias=message.alias or None,
        allow_unverified_base=message.allow_unverified_base,
        allow_no_effect=message.allow_no_effect,
        no_alias=message.no_alias,
        upload_id=message.upload_id,
    )


class AdapterWriter:
    """Writes adapters and versions with where they are now."""

    def __init__(self, registry: Registry, residency: Residency, base: BaseGeometry) -> None:
        self._registry = registry
        self._residency = residency
        self._base = base

    def version(self, record: VersionRecord) -> pb.AdapterVersion:
        """One version, without its manifest."""
        manifest = record.manifest
        return pb.AdapterVersion(
            adapter_name=record.adapter_name,
            number=record.number,
            digest=record.digest,
            kind=_KINDS.get(manifest.kind, pb.ADAPTER_KIND_UNSPECIFIED),
            is_verified=self._is_verified(record),
            create_time=timestamp(record.created_at),
            size_bytes=manifest.size_bytes,
            max_rank=manifest.format.max_rank,
            virtual_token_count=manifest.format.virtual_token_count,
            variable_names=manifest.prompt.variables if manifest.prompt else (),
            tier=self._tier(record),
            reference_count=self._residency.references(record.digest),
            is_proven=record.proven,
        )

    def _tier(self, record: VersionRecord) -> pb.Tier:
        tier = _TIERS[self._residency.tier(record.digest)]
        if tier == pb.TIER_STORE and self._registry.has_copies(record.manifest):
            return pb.TIER_DISK
        return tier

    def _is_verified(self, record: VersionRecord) -> bool:
        """Whether it names this very base; a store may have been filled for another one."""
        try:
            return check_base(record.manifest, self._base)
        except AdapterIncompatible:
            return False

    def adapter(self, name: str, record: VersionRecord | None = None) -> pb.Adapter:
        """An adapter with `record`, or with its live version if that is None."""
        aliases = self._registry.aliases(name)
        numbers = {alias.alias: alias.number for alias in aliases}
        if record is None and LIVE in numbers:
            # A damaged version is left out here; asking for it says what is wrong with it.
            with suppress(AdapterCorrupt, AdapterNotFound):
                record = self._registry.version(name, numbers[LIVE])
        return pb.Adapter(
            name=name,
            version_count=self._registry.num_versions(name),
            aliases=[write_alias(alias) for alias in aliases],
            version=self.version(record) if record else None,
        )

    def adapter_in_full(self, record: VersionRecord) -> pb.Adapter:
        """The adapter of a version, with the version's manifest."""
        message = self.adapter(record.adapter_name, record)
        message.version.manifest_json = canonical_json(record.manifest).decode()
        return message

    def download_header(self, record: VersionRecord) -> pb.DownloadHeader:
        """What a download of the version begins with."""
        version = self.version(record)
        version.manifest_json = canonical_json(record.manifest).decode()
        files = [
            pb.FileDeclaration(name=file.name, size_bytes=file.size, sha256=file.sha256)
            for file in record.manifest.files
        ]
        return pb.DownloadHeader(version=version, files=files)

    def upload(self, status: UploadStatus) -> pb.Upload:
        """How far an upload has come."""
        header, published = status.header, status.published
        return pb.Upload(
            upload_id=header.id(),
            adapter_name=header.name,
            state=_STATES[status.state],
            files=[
                pb.FileProgress(name=f.name, size_bytes=f.size, persisted_size_bytes=persisted)
                for f, persisted in zip(header.files, status.persisted, strict=True)
            ],
            version=self.version(published.record) if published else None,
            rejection_reason=status.refusal.code if status.refusal else "",
        )

    def published(self, upload: PublishedUpload) -> pb.UploadAdapterResponse:
        """The outcome of an upload."""
        return pb.UploadAdapterResponse(
            version=self.version(upload.record),
            alias=write_alias(upload.alias) if upload.alias else None,
            warnings=upload.warnings,
        )
