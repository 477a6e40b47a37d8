"""JSON that Python would read but nobody should mean, and files that are not what they say."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from adapter_support.directories import write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from polygraft.adapters.errors import AdapterInvalid, AdapterUnsupported
from polygraft.adapters.files import check_magic, find_files, hash_file, parse_json, read_json

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v),
    max_leaves=9,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), VALUES | st.floats(allow_nan=False, allow_infinity=False))
)
def test_ordinary_objects_are_read_as_they_are(value: dict[str, object]) -> None:
    assert parse_json(json.dumps(value).encode(), file="x.json") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"r": 1, "r": 2}', "r: the key appears twice"),
        (b'{"a": {"b": 1, "c": 0, "b": 2}}', "b: the key appears twice"),
        (b'{"r": NaN}', "not finite"),
        (b'{"r": -Infinity}', "not finite"),
        (b'{"r": 1e999}', "not finite"),
        (b'{"r": 9223372036854775808}', "exceeds 64 bits"),
        (b'{"r": ' + b"9" * 5000 + b"}", "exceeds 64 bits"),
        (b'{"r": "\\ud800"}', "not valid JSON"),
        (b'{"r": "\xff"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"r": 1}', "not valid JSON"),
        (b'{"r": 1} x', "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"", "not valid JSON"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"a": "' + b"x" * 300_000 + b'"}', "more than the limit of 262144"),
    ],
)
def test_json_that_nobody_should_mean_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(AdapterInvalid, match=message) as caught:
        parse_json(data, file="adapter_config.json")
    assert str(caught.value).startswith("adapter_config.json: ")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b" " * 100)
    with pytest.raises(AdapterInvalid, match="100 bytes are more than the limit of 99"):
        read_json(path, "x.json", max_bytes=99)


def zip_bytes() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, stream)
    assert zipfile.is_zipfile(stream)
    return stream.getvalue()


def tar_bytes() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x80\x04\x95\x00", "a pickle"),
        (zip_bytes(), "a zip archive"),
        (tar_bytes(), "a tar archive"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"\x7fELF\x02", "a program"),
        (b"#!/bin/sh\n", "a script"),
    ],
)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "README.md"])
def test_files_that_can_carry_code_are_refused_by_their_first_bytes(
    data: bytes, kind: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "0.part"
    path.write_bytes(data)
    with pytest.raises(AdapterUnsupported, match=f"{name}: the file is {kind}"):
        check_magic(path, name)


def test_a_header_length_that_looks_like_a_pickle_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "0.part"
    path.write_bytes((0x0480).to_bytes(8, "little") + b"{" + b" " * 0x47F)
    check_magic(path, "adapter_model.safetensors")
    with pytest.raises(AdapterUnsupported):
        check_magic(path, "adapter_config.json")


def test_a_directory_gives_only_the_adapters_files(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    for name in ("README.md", "optimizer.pt", "tokenizer.json"):
        (tmp_path / name).write_text("x")
    assert set(find_files(tmp_path)) == {
        "adapter_config.json", "adapter_model.safetensors", "README.md"
    }  # fmt: skip


def test_a_directory_with_a_pickle_only_is_told_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(AdapterInvalid, match=r"never opened.*safe_serialization=True"):
        find_files(tmp_path)
    with pytest.raises(AdapterInvalid, match=r"the file is missing.*save_pretrained wrote"):
        find_files(tmp_path / "nothing")


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x").startswith("ba7816bf8f01cfea")
