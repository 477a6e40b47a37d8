"""What an upload of these files would be told, found out without a server.

The same functions as in an upload run in the same order. Without a base everything is checked that
does not depend on one: files, manifest, config, and the header of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polygraft.adapters.config import LoraSettings, PrefixSettings, Settings
from polygraft.adapters.errors import AdapterIncompatible
from polygraft.adapters.files import hash_file
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.self_test import Proof
from polygraft.adapters.upload_header import FileDeclaration, UploadHeader, check_header
from polygraft.adapters.validation import check_files, validate_files
from polygraft.adapters.weights import AdapterWeights, read_declarations

_NAME = "checked"  # of the upload that does not take place


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the files are; `base` is None when they were checked without one."""

    kind: str
    max_rank: int  # 0 without LoRA
    modules: tuple[str, ...]  # last parts of the names, where a base told them
    features: tuple[str, ...]  # what it changes besides low-rank updates
    num_tensors: int
    num_virtual_tokens: int
    num_bytes: int
    base: str | None
    is_verified: bool  # the manifest declares this very base
    warnings: tuple[str, ...]
    checks: tuple[str, ...] = ()  # what was measured when it was run, where it was


Prove = Callable[[Manifest, Mapping[str, Path]], Proof]


def inspect_for_base(
    files: Mapping[str, Path],
    geometry: BaseGeometry,
    limits: AdapterLimits,
    *,
    fits: Callable[[AdapterWeights], str | None],
    prove: Prove,
    require_verified: bool = False,
    allow_no_effect: bool = False,
) -> Inspected:
    """All that a server with this base would check. `fits` is the device's; `prove` runs files
    that passed everything else.

    Raises InvalidRequest, AdapterInvalid, AdapterUnsupported or AdapterIncompatible, and what
    `prove` raises.
    """
    header = _declare(files, require_verified, allow_no_effect)
    check_header(header, limits)
    validated = validate_files(header, files, geometry, limits)
    weights = validated.weights
    if why := fits(weights):
        raise AdapterIncompatible(
            f"this server can never load it: {why}.",
            reason="NO_ADAPTER_ROWS",
            hint="Retrain with a lower rank, or start the server with a larger pool.",
        )
    proof = prove(validated.manifest, validated.files)
    return Inspected(
        kind=weights.kind,
        max_rank=weights.max_rank,
        modules=tuple(sorted({name.rpartition(".")[2] for name in weights.modules})),
        features=weights.changes.features,
        num_tensors=weights.tensor_count,
        num_virtual_tokens=weights.num_virtual_tokens,
        num_bytes=_num_bytes(header),
        base=geometry.name,
        is_verified=validated.manifest.base.declared,
        warnings=(*validated.warnings, *proof.warnings),
        checks=tuple(map(str, proof.checks)),
    )


def inspect_alone(
    files: Mapping[str, Path], limits: AdapterLimits, *, require_verified: bool = False
) -> Inspected:
    """All that can be checked without a base. Raises as `inspect_for_base`."""
    header = _declare(files, require_verified, True)
    check_header(header, limits)
    check_files(header, files, limits)
    settings, entries = read_declarations(files, limits)
    ranks = [entry.shape[0] for entry in entries if entry.name.endswith("lora_A.weight")]
    return Inspected(
        kind=_kind(settings),
        max_rank=max(ranks, default=0),
        modules=(),
        features=(),
        num_tensors=len(entries),
        num_virtual_tokens=0 if isinstance(settings, LoraSettings) else settings.num_virtual_tokens,
        num_bytes=_num_bytes(header),
        base=None,
        is_verified=False,
        warnings=(),
    )


def _declare(
    files: Mapping[str, Path], require_verified: bool, allow_no_effect: bool
) -> UploadHeader:
    """What the client would send first; reads every file once."""
    declared = (
        FileDeclaration(name, path.stat().st_size, hash_file(path))
        for name, path in sorted(files.items())
    )
    return UploadHeader(
        _NAME,
        tuple(declared),
        allow_unverified_base=not require_verified,
        allow_no_effect=allow_no_effect,
    )


def _num_bytes(header: UploadHeader) -> int:
    return sum(file.size for file in header.files)


def _kind(settings: Settings) -> str:
    if isinstance(settings, LoraSettings):
        return "lora"
    return "prefix" if isinstance(settings, PrefixSettings) else "soft_prompt"
