"""Uploads: what is published, what is refused, and that nothing of a refused one remains."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_support.directories import (
    FINGERPRINT,
    header_of,
    lora_config,
    lora_tensors,
    push,
    small_geometry,
    write_adapter,
)

from polygraft.adapters.chunks import crc32c
from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    AdapterNotFound,
    AdapterUnsupported,
    InvalidRequest,
    Overloaded,
    PolygraftError,
    UploadCorrupt,
    UploadOutOfRange,
)
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import (
    BaseRecord,
    Manifest,
    TokenizerRecord,
    canonical_json,
    minimal_manifest,
    record_files,
)
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.upload import Upload, UploadState
from polygraft.adapters.uploads import FileDeclaration, UploadHeader, Uploads
from polygraft.adapters.weights import read_adapter

LIMITS = AdapterLimits(
    max_bytes=1 << 20,
    max_uploads=3,
    max_namespace_uploads=2,
    max_files=4,
    max_staged_bytes=3 << 20,
    max_namespace_staged_bytes=2 << 20,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "store"))


@pytest.fixture
def uploads(tmp_path: Path, registry: Registry) -> Iterator[Uploads]:
    made = Uploads(tmp_path / "staging", registry, small_geometry(), LIMITS)
    yield made
    assert made.num_running() == 0  # however the test ended
    is_empty = made.staging_files() == 0
    made.close()
    assert is_empty == (list((tmp_path / "staging").iterdir()) == [])


def trained(directory: Path, content: int = 4, **base: Any) -> Path:
    """A directory as our trainer leaves it: with a manifest that declares the base."""
    files = find_files(write_adapter(directory, lora_config(lora_alpha=content)))
    weights = read_adapter(files, small_geometry(), LIMITS, dtype=torch.float32)
    bare = minimal_manifest(files, weights, record_files(files))
    record = {
        "name": "paper",
        "weights_sha256": FINGERPRINT.weights_sha256,
        "config_sha256": FINGERPRINT.config_sha256,
        "declared": True,
        **base,
    }
    manifest = bare.model_copy(
        update={
            "base": BaseRecord(**record),
            "tokenizer": TokenizerRecord(behaviour_sha256=FINGERPRINT.tokenizer_sha256),
        }
    )
    (directory / "manifest.json").write_bytes(canonical_json(manifest))
    return directory


def edit_manifest(directory: Path, **changes: Any) -> Path:
    path = directory / "manifest.json"
    value = {**json.loads(path.read_bytes()), **changes}
    path.write_bytes(canonical_json(Manifest.model_validate_json(json.dumps(value))))
    return directory


def test_a_bare_peft_directory_is_published_as_unverified(
    uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    published = push(uploads, write_adapter(tmp_path / "a"), "sum")
    assert published.record == registry.resolve("sum")
    assert not published.record.verified
    assert any("UNVERIFIED" in warning for warning in published.warnings)
    assert published.alias is not None
    assert (published.alias.alias, published.alias.number) == ("live", 1)
    stored = registry.files(published.record.digest)
    for name, path in find_files(tmp_path / "a").items():
        assert stored[name].read_bytes() == path.read_bytes()


def test_a_trained_directory_is_published_as_verified(
    uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    directory = trained(tmp_path / "a")
    published = push(uploads, directory, "sum", allow_unverified_base=False)
    assert published.record.verified
    assert published.warnings == []
    manifest = (directory / "manifest.json").read_bytes()
    assert canonical_json(registry.manifest(published.record.digest)) == manifest


def test_only_the_first_upload_of_a_name_moves_live_by_itself(
    uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    made = [write_adapter(tmp_path / str(n), lora_config(lora_alpha=n)) for n in (1, 2, 3)]
    assert push(uploads, made[0], "sum").alias == registry.live("sum")
    second = push(uploads, made[1], "sum")
    assert (second.record.number, second.alias) == (2, None)
    assert registry.resolve("sum").number == 1
    third = push(uploads, made[2], "sum", alias="live")
    assert third.alias is not None
    assert (third.alias.number, third.alias.generation) == (3, 2)
    canary = push(uploads, made[1], "sum", alias="canary")
    assert canary.record.number == 2
    assert any("already published as number 2" in warning for warning in canary.warnings)
    assert registry.resolve("sum@canary").number == 2
    assert registry.resolve("sum").number == 3


def test_another_base_is_refused_with_both_fingerprints(uploads: Uploads, tmp_path: Path) -> None:
    directory = trained(tmp_path / "a", weights_sha256="d" * 64)
    with pytest.raises(AdapterIncompatible) as caught:
        push(uploads, directory, "sum")  # allow_unverified_base does not excuse it
    assert "d" * 64 in str(caught.value)
    assert FINGERPRINT.weights_sha256 in str(caught.value)


def test_a_directory_without_a_base_is_refused_unless_allowed(
    uploads: Uploads, tmp_path: Path
) -> None:
    bare = write_adapter(tmp_path / "a")
    undeclared = edit_manifest(trained(tmp_path / "b"), base={"declared": False})
    for directory in (bare, undeclared):
        with pytest.raises(AdapterIncompatible, match="Set allow_unverified_base"):
            push(uploads, directory, "sum", allow_unverified_base=False)
    assert not push(uploads, undeclared, "sum").record.verified


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "houlsby"}, AdapterUnsupported, "kind houlsby"),
        ({"servable": False}, AdapterUnsupported, "servable False"),
        ({"kind": "prefix"}, AdapterInvalid, "kind: the manifest says prefix"),
        ({"kind": "soft_prompt"}, AdapterInvalid, "kind: the manifest says soft_prompt"),
        (
            {"files": [{"name": "adapter_config.json", "size": 1, "sha256": "0" * 64}]},
            AdapterInvalid,
            "differ from the files sent",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, uploads: Uploads, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        push(uploads, edit_manifest(trained(tmp_path / "a"), **changes), "sum")


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda d: write_adapter(d, lora_config(use_qalora=True)), AdapterUnsupported, None),
        (
            lambda d: write_adapter(d, tensors={k: v * 0 for k, v in lora_tensors().items()}),
            AdapterInvalid,
            "NO_EFFECT",
        ),
        (
            lambda d: write_adapter(
                d, tensors={k: v * float("nan") for k, v in lora_tensors().items()}
            ),
            AdapterInvalid,
            "ADAPTER_INVALID",
        ),
        (
            lambda d: write_adapter(d, lora_config(r=300), lora_tensors(rank=300)),
            AdapterIncompatible,
            None,
        ),
    ],
)
def test_what_the_reader_refuses_is_not_published(
    make: Any, error: type[PolygraftError], reason: str | None, uploads: Uploads,
    registry: Registry, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        push(uploads, make(tmp_path / "a"), "sum")
    assert reason in (None, caught.value.code)
    with pytest.raises(AdapterNotFound):
        registry.resolve("sum")
    assert uploads.staging_files() == 0
    push(uploads, write_adapter(tmp_path / "good"), "sum")  # the server goes on


def test_an_identity_adapter_is_published_when_allowed(uploads: Uploads, tmp_path: Path) -> None:
    zeros = {name: tensor * 0 for name, tensor in lora_tensors().items()}
    published = push(
        uploads, write_adapter(tmp_path / "a", tensors=zeros), "sum", allow_no_effect=True
    )
    assert any("NO_EFFECT" in warning for warning in published.warnings)


def test_without_an_alias_not_even_the_first_version_is_live(
    uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    made = [write_adapter(tmp_path / str(i), tensors=lora_tensors(seed=i)) for i in (1, 2)]
    published = push(uploads, made[0], "sum", no_alias=True)
    assert (published.record.number, published.alias, registry.live("sum")) == (1, None, None)
    assert registry.resolve("sum@1").digest == published.record.digest
    second = push(uploads, made[1], "sum").alias
    assert second is not None
    assert (second.alias, second.number) == ("live", 2)


def test_what_the_device_can_never_hold_is_refused(registry: Registry, tmp_path: Path) -> None:
    made = Uploads(
        tmp_path / "staging", registry, small_geometry(), LIMITS, fits=lambda w: "too wide"
    )
    with pytest.raises(AdapterIncompatible, match="can never load it: too wide"):
        push(made, write_adapter(tmp_path / "a"), "sum")
    made.close()


def declared(name: str = "adapter_config.json", size: int = 9, sha256: str = "0" * 64) -> Any:
    return FileDeclaration(name, size, sha256)


GOOD = (declared(), declared("adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (UploadHeader("../evil", GOOD), "not a valid name"),
        (UploadHeader("a/../b", GOOD), "not a valid name"),
        (UploadHeader("", GOOD), "not a valid name"),
        (UploadHeader("sum", GOOD, alias="../x"), "not a valid alias"),
        (UploadHeader("sum", GOOD, alias="7"), "not a valid alias"),
        (UploadHeader("sum", GOOD, alias="live", no_alias=True), "no_alias with alias live"),
        (UploadHeader("sum", ()), r"files: 0 is not valid"),
        (UploadHeader("sum", GOOD * 3), r"allowed: 1\.\.4 files"),
        (UploadHeader("sum", (GOOD[0], *GOOD)), "every name once"),
        (UploadHeader("sum", GOOD[:1]), r"adapter_model\.safetensors: the file is missing"),
        (UploadHeader("sum", GOOD[1:]), r"adapter_config\.json: the file is missing"),
        (UploadHeader("sum", (*GOOD, declared("report.json", 0))), r"files\[2\].size: 0"),
        (UploadHeader("sum", (*GOOD, declared("README.md", -1))), "size: -1"),
        (UploadHeader("sum", (declared(size=300_000), GOOD[1])), r"1\.\.262144 bytes"),
        (UploadHeader("sum", (GOOD[0], declared("adapter_model.safetensors", 1 << 21))), "size"),
        (UploadHeader("sum", (declared(sha256="0" * 63), GOOD[1])), "64 lower-case hex"),
        (UploadHeader("sum", (declared(sha256="A" * 64), GOOD[1])), "64 lower-case hex"),
        (UploadHeader("sum", GOOD), "Set allow_unverified_base"),
    ],
)
def test_headers_are_checked_before_a_byte_is_written(
    header: UploadHeader, message: str, uploads: Uploads
) -> None:
    with pytest.raises(PolygraftError, match=message):
        uploads.begin(header)
    assert uploads.staging_files() == 0


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "lora/adapter_config.json", "adapter_model.bin",
     "weights.pt", "x\0y", "adapter_config.json\n", "ADAPTER_CONFIG.JSON", "setup.py", ""],
)  # fmt: skip
def test_file_names_other_than_an_adapters_are_refused(name: str, uploads: Uploads) -> None:
    header = UploadHeader("sum", (*GOOD, declared(name)), allow_unverified_base=True)
    with pytest.raises(AdapterUnsupported, match="is not a file of an adapter"):
        uploads.begin(header)


@contextmanager
def begun(
    uploads: Uploads, directory: Path, **changes: Any
) -> Iterator[tuple[Upload, list[bytes]]]:
    """An upload of a directory, and the bytes of its files."""
    files = find_files(directory)
    header = dataclasses.replace(header_of(files, "sum", allow_unverified_base=True), **changes)
    upload = uploads.begin(header)
    try:
        yield upload, [path.read_bytes() for path in files.values()]
    finally:
        uploads.end(upload)


def test_truncated_long_and_wrong_bytes_are_never_published(
    uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    directory = write_adapter(tmp_path / "a")
    with begun(uploads, directory) as (upload, (config, weights)):
        upload.write(0, 0, config)
        upload.write(1, 0, weights[:-1])
        with pytest.raises(UploadCorrupt, match=r"adapter_model\.safetensors: \d+ of the declared"):
            upload.finish()
        assert upload.state is UploadState.RECEIVING
        with pytest.raises(UploadCorrupt, match="more bytes than the declared"):
            upload.write(0, len(config), b"x")
        upload.write(1, len(weights) - 1, b"\xff")
        with pytest.raises(UploadCorrupt, match="the bytes have sha256"):
            upload.finish()
        assert upload.state is UploadState.REJECTED
    assert uploads.staging_files() == 0
    assert registry.names() == []
    push(uploads, directory, "sum")  # a rejected header may begin again


def test_bytes_must_come_without_gaps(uploads: Uploads, tmp_path: Path) -> None:
    with begun(uploads, write_adapter(tmp_path / "a")) as (upload, (config, weights)):
        upload.write(0, 0, config[:5])
        with pytest.raises(UploadOutOfRange, match=r"offset 6 is not where .* \(5\)") as caught:
            upload.write(0, 6, config[6:])
        assert caught.value.metadata == {"offset": "5"}
        with pytest.raises(UploadOutOfRange):
            upload.write(0, -1, config[:1])
        with pytest.raises(InvalidRequest, match="no file 2"):
            upload.write(2, 0, b"x")
        upload.write(0, 0, config)  # what is known is compared, the rest appended
        upload.write(1, 0, weights)
        assert upload.finish().record.number == 1


def test_a_chunk_that_repeats_bytes_must_repeat_them_exactly(
    uploads: Uploads, tmp_path: Path
) -> None:
    with begun(uploads, write_adapter(tmp_path / "a")) as (upload, (config, weights)):
        upload.write(0, 0, config[:100])
        for offset, data in ((0, b"?"), (50, config[50:99] + b"?"), (90, b"?" * 20)):
            with pytest.raises(UploadCorrupt, match=f"the chunk at {offset} differs") as caught:
                upload.write(0, offset, data)
            assert caught.value.code == "CHUNK_CORRUPT"
        for offset in (0, 99, 100):
            assert upload.write(0, offset, config[offset:100])
        upload.write(0, 100, config[100:])
        upload.write(1, 0, weights)
        upload.finish()


def test_a_chunk_with_a_wrong_crc_is_not_kept(uploads: Uploads, tmp_path: Path) -> None:
    with begun(uploads, write_adapter(tmp_path / "a")) as (upload, (config, weights)):
        with pytest.raises(UploadCorrupt, match="has crc32c") as caught:
            upload.write(0, 0, config, crc32c(config) ^ 1)
        assert caught.value.code == "CHUNK_CORRUPT"
        assert uploads.status(upload.header.id()).persisted == (0, 0)
        upload.write(0, 0, config, crc32c(config))
        upload.write(1, 0, weights, crc32c(weights))
        upload.finish()


def test_files_may_be_interleaved(uploads: Uploads, tmp_path: Path) -> None:
    with begun(uploads, write_adapter(tmp_path / "a")) as (upload, parts):
        for offset in range(0, max(map(len, parts)), 100):
            for index, data in enumerate(parts):
                if offset < len(data):
                    upload.write(index, offset, data[offset : offset + 100])
        assert upload.finish().record.number == 1


def test_one_of_two_clients_that_finish_at_once_publishes_for_both(
    uploads: Uploads, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = []
    real = uploads._validate

    def counted(*arguments: Any) -> Any:
        validated.append(1)
        return real(*arguments)

    monkeypatch.setattr(uploads, "_validate", counted)
    directory = write_adapter(tmp_path / "a")
    with begun(uploads, directory) as (one, parts), begun(uploads, directory) as (two, _):
        for index, data in enumerate(parts):
            one.write(index, 0, data[:300])
            two.write(index, 0, data[:500])
            one.write(index, 300, data[300:])
        with ThreadPoolExecutor(2) as pool:
            outcomes = [pool.submit(upload.finish) for upload in (one, two)]
        assert outcomes[0].result() is outcomes[1].result()
        assert not two.write(0, 0, b"anything")  # nobody needs it any more
    assert validated == [1]
    assert registry.names() == ["sum"]


def test_uploads_at_once_are_limited_in_all_and_by_namespace(
    uploads: Uploads, tmp_path: Path
) -> None:
    directory = write_adapter(tmp_path / "a")

    def refused(name: str) -> Overloaded:
        with pytest.raises(Overloaded) as caught:
            push(uploads, directory, name)
        assert caught.value.code == "TOO_MANY_UPLOADS"
        return caught.value

    with begun(uploads, directory, name="x/a"), begun(uploads, directory, name="x/b"):
        assert "2 uploads are running in namespace 'x'" in str(refused("x/c"))
        with begun(uploads, directory, name="sum"):
            assert "3 uploads are running on this server" in str(refused("y/c"))
    for _ in range(5):  # a failed begin gives its place back
        with pytest.raises(InvalidRequest):
            uploads.begin(UploadHeader("..", GOOD))
    push(uploads, directory, "sum")


def test_staged_bytes_are_limited_in_all_and_by_namespace(uploads: Uploads, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    for name in ("x/a", "x/b", "sum"):  # each counts as 1 MiB
        with begun(uploads, directory, name=name):
            pass
    for name in ("x/c", "y/a"):
        with (
            pytest.raises(Overloaded, match="bytes of unfinished uploads") as caught,
            begun(uploads, directory, name=name),
        ):
            pass
        assert caught.value.code == "STAGING_FULL"
    push(uploads, directory, "sum")  # it is there already and makes room
    with begun(uploads, directory, name="y/a"):
        pass


def test_a_full_disk_is_met_at_the_header(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = write_adapter(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(Overloaded) as caught:
            push(uploads, directory, "sum")
    assert caught.value.code == "STORAGE_FULL"
    assert uploads.staging_files() == 0
    push(uploads, directory, "sum")


def test_side_files_must_be_what_their_names_say(uploads: Uploads, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    for name, data in (("report.json", b'{"a": NaN}'), ("probes.safetensors", b"x" * 20)):
        (directory / name).write_bytes(data)
        with pytest.raises(AdapterInvalid, match=name):
            push(uploads, directory, "sum")
        (directory / name).unlink()
    (directory / "report.json").write_text('{"rougeL": 41.2}')
    (directory / "README.md").write_bytes(b"PK\x03\x04")
    with pytest.raises(AdapterUnsupported, match=r"README\.md: the file is a zip archive"):
        push(uploads, directory, "sum")
    (directory / "README.md").write_text("# hello")
    published = push(uploads, directory, "sum")
    names = [file.name for file in published.record.manifest.files]
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "report.json"]
