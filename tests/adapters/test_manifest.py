"""A manifest has one byte form, and that form is the identity of the version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_support.directories import FINGERPRINT, lora_config, small_geometry, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from polygraft.adapters.canonical import canonical_bytes, sha256_digest
from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import (
    BaseRecord,
    Manifest,
    TokenizerRecord,
    canonical_json,
    check_base,
    check_content,
    minimal_manifest,
    parse_manifest,
    record_files,
)
from polygraft.adapters.weights import AdapterWeights, read_adapter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=12,
)
FULL: dict[str, Any] = {
    "schema": "polygraft.adapter/1",
    "kind": "lora",
    "servable": True,
    "files": [{"name": "adapter_config.json", "size": 3, "sha256": "1" * 64}],
    "format": {"peft_type": "LORA", "max_rank": 16, "tensor_count": 2, "modules": ["q_proj"]},
    "base": {
        "name": "tiny",
        "weights_sha256": FINGERPRINT.weights_sha256,
        "config_sha256": FINGERPRINT.config_sha256,
        "dtype": "bfloat16",
        "declared": True,
    },
    "tokenizer": {"behaviour_sha256": FINGERPRINT.tokenizer_sha256, "vocab_size": 32},
    "prompt": {
        "segments": [{"text": "Summarize:\n"}, {"var": "dialogue"}],
        "add_bos": True,
        "defaults": {"temperature": "0", "max_output_tokens": "128"},
    },
    "data": [{"split": "train", "rows": 5, "sha256": "2" * 64, "group_key": None}],
    "method": {"name": "lora", "seeds": {"torch": 0}},
    "scores": [
        {"subject": "base", "metric": "rougeL", "value": "41.27", "rows": 5, "split": "test",
         "ci95": ["39.80", "42.61"]}
    ],
    "provenance": {"trainer": "polygraft 0.1.0", "dirty": False, "parent": None},
}  # fmt: skip


def changed(**changes: Any) -> bytes:
    return canonical_bytes({**FULL, **changes})


def read(directory: Path) -> tuple[AdapterWeights, dict[str, Path]]:
    files = find_files(directory)
    weights = read_adapter(files, small_geometry(), AdapterLimits(), dtype=torch.float32)
    return weights, files


@settings(deadline=None)
@given(JSON)
def test_canonical_bytes_read_back_and_do_not_depend_on_order(value: Any) -> None:
    data = canonical_bytes(value)
    assert json.loads(data) == value
    if isinstance(value, dict):
        assert canonical_bytes(dict(reversed(value.items()))) == data


@pytest.mark.parametrize("value", [1.0, {"a": [0, {"b": 0.5}]}, [float("nan")]])
def test_floats_have_no_canonical_form(value: Any) -> None:
    with pytest.raises(TypeError, match="no floats"):
        canonical_bytes(value)


def test_keys_must_be_text() -> None:
    with pytest.raises(TypeError, match="no text"):
        canonical_bytes({1: 2})


def test_the_digest_is_the_hash_of_the_bytes_given() -> None:
    manifest = parse_manifest(changed())
    assert canonical_json(manifest) == changed()
    assert manifest.digest == sha256_digest(changed())
    assert manifest.size_bytes == 3


def test_fields_left_out_stay_out() -> None:
    small = {key: FULL[key] for key in ("schema", "kind", "files", "format")}
    data = canonical_bytes({**small, "base": {"declared": False}})
    assert canonical_json(parse_manifest(data)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(FULL).encode(), "canonical form"),
        (changed(servable=1), "servable"),
        (changed(kind="magic"), "kind"),
        (changed(schema="polygraft.adapter/2"), "schema"),
        (changed(extra=1), "extra"),
        (changed(files=[]), "files"),
        (changed(files=[*FULL["files"], *FULL["files"]]), "sorted by name"),
        (changed(files=[{"name": "manifest.json", "size": 1, "sha256": "1" * 64}]), "manifest"),
        (changed(files=[{"name": "x", "size": 1, "sha256": "1" * 63}]), "sha256"),
        (changed(base={"declared": True}), "weights_sha256"),
        (changed(tokenizer=None), "tokenizer record"),
        (changed(scores=[{**FULL["scores"][0], "value": "much"}]), "scores.0.value"),
        (changed().replace(b'"size":3', b'"size":3.0'), "size"),
        (changed(prompt={"segments": [{"text": "a", "var": "b"}]}), "prompt"),
        (changed(prompt={"segments": [{"var": "b c"}]}), "prompt"),
    ],
)
def test_manifests_that_are_wrong_or_not_canonical_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(AdapterInvalid, match=message) as caught:
        parse_manifest(data)
    assert caught.value.file == "manifest.json"


def test_a_bare_directory_gets_the_same_manifest_every_time(tmp_path: Path) -> None:
    manifests = []
    for name in ("a", "b"):
        weights, files = read(write_adapter(tmp_path / name))
        manifests.append(minimal_manifest(files, weights, record_files(files)))
    first, second = manifests
    assert canonical_json(first) == canonical_json(second)
    assert not first.base.declared
    assert first.format.max_rank == 2
    assert first.format.modules == ("q_proj",)
    assert parse_manifest(canonical_json(first)) == first
    weights, files = read(write_adapter(tmp_path / "c", lora_config(lora_alpha=5)))
    assert minimal_manifest(files, weights, record_files(files)).digest != first.digest


def test_only_the_declared_base_is_accepted() -> None:
    manifest = parse_manifest(changed())
    assert check_base(manifest, small_geometry())
    other = {**FULL["base"], "weights_sha256": "d" * 64}
    with pytest.raises(AdapterIncompatible) as caught:
        check_base(parse_manifest(changed(base=other)), small_geometry())
    assert "d" * 64 in str(caught.value)
    assert FINGERPRINT.weights_sha256 in str(caught.value)
    with pytest.raises(AdapterIncompatible, match="tokenizer"):
        check_base(
            parse_manifest(changed(tokenizer={"behaviour_sha256": "e" * 64})), small_geometry()
        )
    assert not check_base(parse_manifest(changed(base={"declared": False})), small_geometry())


def test_the_manifest_must_describe_the_tensors(tmp_path: Path) -> None:
    weights, _ = read(write_adapter(tmp_path))
    good = {"peft_type": "LORA", "max_rank": 2, "tensor_count": 2}
    check_content(parse_manifest(changed(format=good)), weights, small_geometry())
    for wrong in ({"max_rank": 4}, {"tensor_count": 4}, {"virtual_token_count": 1}):
        manifest = parse_manifest(changed(format={**good, **wrong}))
        with pytest.raises(AdapterInvalid, match="the manifest says"):
            check_content(manifest, weights, small_geometry())
    recipe = {**FULL["prompt"], "stop_token_ids": [1, 32]}
    manifest = parse_manifest(changed(format=good, prompt=recipe))
    with pytest.raises(AdapterInvalid, match=r"stop_token_ids: the manifest says \[32\]"):
        check_content(manifest, weights, small_geometry())


def test_a_manifest_made_in_code_round_trips() -> None:
    manifest = Manifest(
        schema="polygraft.adapter/1",
        kind="soft_prompt",
        files=FULL["files"],
        format={"peft_type": "PROMPT_TUNING", "virtual_token_count": 4, "tensor_count": 1},
        base=BaseRecord(declared=True, weights_sha256="a" * 64, config_sha256="b" * 64),
        tokenizer=TokenizerRecord(behaviour_sha256="c" * 64, eos_token_ids=[1, 2]),
        provenance={"created": "2026-01-31T12:00:00Z"},
    )  # type: ignore[call-overload, unused-ignore]
    assert parse_manifest(canonical_json(manifest)) == manifest
