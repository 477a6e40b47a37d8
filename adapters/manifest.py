"""The manifest of an adapter version: what it consists of, what it was made for, how it scored.

The digest of its canonical bytes is the identity of the version. The server stores the bytes it
was given and never edits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polygraft.adapters.canonical import canonical_bytes, sha256_digest
from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.files import (
    CONFIG_FILE,
    MANIFEST_FILE,
    PROBES_FILE,
    hash_file,
    parse_json,
    read_json,
)
from polygraft.adapters.fingerprint import Fingerprint
from polygraft.adapters.prompt import PromptRecipe

if TYPE_CHECKING:  # so that whoever only reads the store need not load torch
    from polygraft.adapters.geometry import BaseGeometry
    from polygraft.adapters.weights import AdapterWeights

SCHEMA: Literal["polygraft.adapter/1"] = "polygraft.adapter/1"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]{1,18}(\.[0-9]{1,18})?(e-?[0-9]{1,3})?$")]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileRecord(_Frozen):
    """One file of the version; `size` in bytes."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    size: Count
    sha256: Sha256


class FormatRecord(_Frozen):
    """What the tensors are; `modules` are the last parts of the adapted modules' names, `features`
    what brings more than low-rank updates (keys of PEFT's config where there is one)."""

    peft_type: str
    peft_version: str | None = None
    max_rank: Count = 0
    virtual_token_count: Count = 0
    tensor_count: Count
    modules: tuple[str, ...] = Field(default=(), strict=False)
    features: tuple[str, ...] = Field(default=(), strict=False)


class BaseRecord(_Frozen):
    """The base it was trained on. `declared` false: unknown, so only shapes can be checked."""

    name: str | None = None
    weights_sha256: Sha256 | None = None
    config_sha256: Sha256 | None = None
    dtype: str | None = None
    declared: bool

    @model_validator(mode="after")
    def _declared_needs_hashes(self) -> BaseRecord:
        if self.declared and not (self.weights_sha256 and self.config_sha256):
            raise ValueError("a declared base needs weights_sha256 and config_sha256")
        return self


class TokenizerRecord(_Frozen):
    """The tokenizer it was trained with."""

    behaviour_sha256: Sha256
    files_sha256: Sha256 | None = None
    vocab_size: Count | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = Field(default=(), strict=False)


class DataRecord(_Frozen):
    """One split of the data, by the hash of its rows."""

    split: str
    rows: Count
    sha256: Sha256
    group_key: str | None = None


class MethodRecord(_Frozen):
    """How it was trained."""

    name: str
    config_sha256: Sha256 | None = None
    trainable_params: Count | None = None
    seeds: Mapping[str, int] = Field(default_factory=dict)


class ScoreRecord(_Frozen):
    """One measured number; `subject` is "adapter", "base" or a named comparison."""

    subject: str
    metric: str
    value: Decimal
    ci95: tuple[Decimal, Decimal] | None = Field(default=None, strict=False)
    rows: Count
    split: str
    data_sha256: Sha256 | None = None
    signature: str | None = None
    decoding: str | None = None


class ProbesRecord(_Frozen):
    """Recorded outputs for a numerical self-test; `dtype` is what they were computed in."""

    file: Literal["probes.safetensors"]
    count: Count
    dtype: str


class Manifest(_Frozen):
    """Everything known about a version. Fields left out stay out of the canonical form."""

    schema_id: Literal["polygraft.adapter/1"] = Field(alias="schema")
    kind: Literal["lora", "soft_prompt", "prefix", "bundle", "houlsby", "selective", "full"]
    servable: bool = True
    files: tuple[FileRecord, ...] = Field(min_length=1, strict=False)
    format: FormatRecord
    base: BaseRecord
    tokenizer: TokenizerRecord | None = None
    prompt: PromptRecipe | None = None
    data: tuple[DataRecord, ...] = Field(default=(), strict=False)
    method: MethodRecord | None = None
    scores: tuple[ScoreRecord, ...] = Field(default=(), strict=False)
    probes: ProbesRecord | None = None
    provenance: Mapping[str, str | int | bool | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _files_are_sorted(self) -> Manifest:
        names = [file.name for file in self.files]
        if names != sorted(set(names)) or MANIFEST_FILE in names:
            raise ValueError("files must be sorted by name, without repeats or manifest.json")
        if (PROBES_FILE in names) != (self.probes is not None):
            raise ValueError(f"files must list {PROBES_FILE} if, and only if, probes describes it")
        if self.base.declared and self.tokenizer is None:
            raise ValueError("a declared base needs a tokenizer record")
        return self

    @property
    def digest(self) -> str:
        """The version id, "sha256:<hex>"."""
        return sha256_digest(canonical_json(self))

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the version."""
        return sum(file.size for file in self.files)


def canonical_json(manifest: Manifest) -> bytes:
    """The bytes that are hashed and stored."""
    return canonical_bytes(manifest.model_dump(mode="json", by_alias=True, exclude_unset=True))


def parse_manifest(data: bytes, *, file: str = MANIFEST_FILE) -> Manifest:
    """The manifest in `data`; AdapterInvalid unless it is valid and in canonical form."""
    value = parse_json(data, file=file)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise AdapterInvalid(
            f"{first['msg']}.",
            file=file,
            item=".".join(str(part) for part in first["loc"]) or None,
            found=str(first["input"])[:200],
        ) from error
    if not _is_canonical(data, value):
        raise AdapterInvalid(
            "the manifest is not in canonical form (sorted keys, no spaces, no floats).",
            file=file,
            hint="Write it with polygraft.adapters.manifest.canonical_json().",
        )
    return manifest


def minimal_manifest(
    files: Mapping[str, Path], weights: AdapterWeights, records: tuple[FileRecord, ...]
) -> Manifest:
    """The manifest of a bare PEFT folder: deterministic, without times, its base not declared."""
    config = read_json(files[CONFIG_FILE], CONFIG_FILE)
    version = config.get("peft_version")
    leaves = sorted({name.rpartition(".")[2] for name in weights.modules})
    # Left out where there are none, as it was before there were any: the digest stays the same.
    features = {"features": weights.changes.features} if weights.changes.features else {}
    return Manifest(
        schema=SCHEMA,
        kind=weights.kind,
        servable=True,
        files=tuple(sorted(records, key=lambda record: record.name)),
        format=FormatRecord(
            peft_type=str(config["peft_type"]),
            peft_version=version[:64] if isinstance(version, str) else None,
            max_rank=weights.max_rank,
            virtual_token_count=weights.num_virtual_tokens,
            tensor_count=weights.tensor_count,
            modules=tuple(leaves),
            **features,
        ),
        base=BaseRecord(declared=False),
    )


def record_files(files: Mapping[str, Path]) -> tuple[FileRecord, ...]:
    """Size and sha256 of each file, sorted by name as a manifest wants them."""
    return tuple(
        FileRecord(name=name, size=path.stat().st_size, sha256=hash_file(path))
        for name, path in sorted(files.items())
    )


def check_base(manifest: Manifest, geometry: BaseGeometry) -> bool:
    """True when the manifest declares this very base, False when it declares none.

    Raises AdapterIncompatible, printing both fingerprints, when it declares another one.
    """
    if not manifest.base.declared:
        return False
    assert manifest.tokenizer is not None  # the manifest's own validation
    declared = Fingerprint(
        weights_sha256=manifest.base.weights_sha256 or "",
        config_sha256=manifest.base.config_sha256 or "",
        tokenizer_sha256=manifest.tokenizer.behaviour_sha256,
    )
    if declared == geometry.fingerprint:
        return True
    raise AdapterIncompatible(
        f"it was made for base {manifest.base.name!r} with {_listing(declared)}; this server "
        f"runs {geometry.name!r} with {_listing(geometry.fingerprint)}.",
        file=MANIFEST_FILE,
        item="base",
        found=_listing(declared),
        allowed=_listing(geometry.fingerprint),
        hint="Serve it on its own base, or retrain it on this one.",
    )


def check_content(manifest: Manifest, weights: AdapterWeights, geometry: BaseGeometry) -> None:
    """The manifest must describe the tensors that were read; raises AdapterInvalid."""
    stop_ids = manifest.prompt.stop_token_ids if manifest.prompt else ()
    for item, said, is_ in (
        ("kind", manifest.kind, weights.kind),
        ("format.max_rank", manifest.format.max_rank, weights.max_rank),
        (
            "format.virtual_token_count",
            manifest.format.virtual_token_count,
            weights.num_virtual_tokens,
        ),
        ("format.tensor_count", manifest.format.tensor_count, weights.tensor_count),
        ("format.features", manifest.format.features, weights.changes.features),
        ("prompt.stop_token_ids", [i for i in stop_ids if i >= geometry.vocab_size], []),
    ):
        if said != is_:
            raise AdapterInvalid(
                f"the manifest says {said}, tensors and base say {is_}.",
                file=MANIFEST_FILE,
                item=item,
                found=said,
                allowed=is_,
            )


def _is_canonical(data: bytes, value: Any) -> bool:
    try:
        return canonical_bytes(value) == data
    except TypeError:  # a float
        return False


def _listing(fingerprint: Fingerprint) -> str:
    return (
        f"weights {fingerprint.weights_sha256}, config {fingerprint.config_sha256}, "
        f"tokenizer {fingerprint.tokenizer_sha256}"
    )
