"""Are these files an adapter for this base: all checks of an upload, from cheap to costly.

Runs in a worker thread and touches nothing but the files it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polygraft.adapters.errors import AdapterInvalid, AdapterUnsupported
from polygraft.adapters.files import (
    ALLOWED_FILES,
    MANIFEST_FILE,
    PROBES_FILE,
    check_magic,
    read_json,
)
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import (
    FileRecord,
    Manifest,
    check_base,
    check_content,
    minimal_manifest,
    parse_manifest,
)
from polygraft.adapters.probes import read_probes
from polygraft.adapters.upload_header import UploadHeader, unverified
from polygraft.adapters.weights import AdapterWeights, read_adapter

SERVABLE_KINDS = ("lora", "soft_prompt", "prefix")


@dataclass(frozen=True, slots=True)
class ValidatedUpload:
    """Files that may be published, without manifest.json, and what describes them."""

    manifest: Manifest
    files: Mapping[str, Path]
    weights: AdapterWeights
    warnings: tuple[str, ...]


def validate_files(
    header: UploadHeader,
    files: Mapping[str, Path],
    geometry: BaseGeometry,
    limits: AdapterLimits,
) -> ValidatedUpload:
    """Everything that can be known without running the adapter.

    Raises AdapterInvalid, AdapterUnsupported or AdapterIncompatible.
    """
    records, manifest = check_files(header, files, limits)
    content = {record.name: files[record.name] for record in records}
    if not (manifest and check_base(manifest, geometry)) and not header.allow_unverified_base:
        raise unverified()
    weights = read_adapter(
        content,
        geometry,
        limits,
        dtype=geometry.torch_dtype,
        allow_no_effect=header.allow_no_effect,
    )
    if manifest is None:
        manifest = minimal_manifest(content, weights, records)
    else:
        check_content(manifest, weights, geometry)
    if manifest.probes is not None:
        path, count = content[PROBES_FILE], manifest.probes.count
        read_probes(path, count=count, vocab_size=geometry.vocab_size)
    return ValidatedUpload(manifest, content, weights, _warnings(manifest, weights))


def check_files(
    header: UploadHeader, files: Mapping[str, Path], limits: AdapterLimits
) -> tuple[tuple[FileRecord, ...], Manifest | None]:
    """What needs neither the base nor the weights: the records of all files but the manifest, and
    the manifest, if there is one."""
    records = tuple(
        FileRecord(name=file.name, size=file.size, sha256=file.sha256)
        for file in sorted(header.files, key=lambda file: file.name)
        if file.name != MANIFEST_FILE
    )
    _check_side_files(files, limits)
    manifest = _read_manifest(files[MANIFEST_FILE]) if MANIFEST_FILE in files else None
    if manifest is not None:
        _check_servable(manifest, records)
    return records, manifest


def _check_side_files(files: Mapping[str, Path], limits: AdapterLimits) -> None:
    """Files that are stored but not applied must at least be what their names say."""
    for name, path in files.items():
        check_magic(path, name)
        if name == "report.json":
            read_json(path, name, max_bytes=ALLOWED_FILES[name] or limits.max_bytes)
        elif name == PROBES_FILE and MANIFEST_FILE not in files:
            raise AdapterInvalid(
                "probes belong to a manifest, and there is none.",
                file=name,
                hint=f"Send the {MANIFEST_FILE} that the trainer wrote, or leave the probes out.",
            )


def _read_manifest(path: Path) -> Manifest:
    check_magic(path, MANIFEST_FILE)
    return parse_manifest(path.read_bytes())


def _check_servable(manifest: Manifest, records: tuple[FileRecord, ...]) -> None:
    if manifest.kind not in SERVABLE_KINDS or not manifest.servable:
        raise AdapterUnsupported(
            f"kind {manifest.kind} (servable {manifest.servable}) cannot be served.",
            file=MANIFEST_FILE,
            item="kind",
            found=manifest.kind,
            allowed=", ".join(SERVABLE_KINDS),
            hint="Retrain as LoRA, prompt tuning or prefix tuning.",
        )
    if manifest.files != records:
        odd = sorted({file.name for file in set(manifest.files) ^ set(records)})
        raise AdapterInvalid(
            f"names, sizes or sha256 of {', '.join(odd)} differ from the files sent.",
            file=MANIFEST_FILE,
            item="files",
            found=", ".join(odd),
            hint="Upload the directory exactly as the trainer wrote it.",
        )


def _warnings(manifest: Manifest, weights: AdapterWeights) -> tuple[str, ...]:
    warnings = []
    if not manifest.base.declared:
        warnings.append(
            "UNVERIFIED: it does not declare its base; only names, shapes and values were checked"
        )
    if not weights.has_effect:
        warnings.append("NO_EFFECT: the adapter changes nothing")
    return tuple(warnings)
