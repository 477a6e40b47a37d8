"""A fingerprint changes when what the base computes changes, and only then."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, save_base, tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polygraft.adapters import fingerprint
from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.fingerprint import (
    fingerprint_base,
    hash_config,
    hash_tokenizer,
    hash_weights,
    resolve_base,
)
from polygraft.adapters.tokenizer_corpus import CORPUS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "polygraft" / "fingerprints"


def test_sharding_does_not_matter(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert hash_weights(tmp_path / "one") == hash_weights(tmp_path / "many")


def test_any_changed_weight_name_or_dtype_matters(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    base = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    variants: list[dict[str, torch.Tensor]] = [
        base,
        {**base, "a": torch.arange(4.0) + 1e-7},
        {**base, "b": torch.ones(4)},
        {**base, "b": torch.ones(2, 2, dtype=torch.float16)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    hashes = set()
    for tensors in variants:
        save_file(tensors, path)
        hashes.add(hash_weights(tmp_path))
    assert len(hashes) == len(variants)


def test_a_stored_copy_of_a_tied_head_does_not_matter(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    without = hash_weights(tmp_path)
    assert "lm_head.weight" not in tensors
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert hash_weights(tmp_path) == without
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path)
    assert hash_weights(tmp_path) != without


def test_only_what_the_config_computes_matters() -> None:
    config: dict[str, Any] = {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 10000.0}}
    same = {"use_cache": True, "dtype": "bfloat16", "transformers_version": "4", **config}
    assert hash_config(config) == hash_config(dict(reversed(same.items())))
    assert hash_config(config) == hash_config({**config, "torch_dtype": "x", "_name_or_path": "y"})
    assert hash_config(config) != hash_config({**config, "rms_norm_eps": 1e-6})
    assert hash_config(config) != hash_config({**config, "rope_parameters": {"rope_theta": 1.0}})


def test_only_what_the_tokenizer_does_matters(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    reloaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert hash_tokenizer(tokenizer) == hash_tokenizer(reloaded)
    reloaded.add_tokens(["fox"])
    assert hash_tokenizer(tokenizer) != hash_tokenizer(reloaded)
    core = Tokenizer(models.BPE(vocab={"a": 0, "<s>": 1}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    hashes = {
        hash_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core, **special))
        for special in ({}, {"bos_token": "<s>"}, {"eos_token": "<s>"}, {"eos_token": "a"})
    }
    assert len(hashes) == 4


def test_the_corpus_is_the_one_that_fingerprints_were_made_with() -> None:
    """Editing the corpus would refuse every adapter ever trained: add a version instead."""
    assert len(CORPUS) == len(set(CORPUS)) == 64
    assert hash_tokenizer(byte_tokenizer()) == (
        "60b6aea52f05b4c3d7a36013292a05b530f1f80f438c71d97db60bbd079d0e7f"
    )


def test_the_weights_are_hashed_once_until_a_file_changes(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base", tiny_llama())
    tokenizer = byte_tokenizer()
    first = fingerprint_base(base, tokenizer)
    assert len(list(own_cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "hash_weights", lambda path: pytest.fail("hashed again"))
        assert fingerprint_base(base, tokenizer) == first
    save_base(base, tiny_llama(seed=1))
    assert fingerprint_base(base, tokenizer).weights_sha256 != first.weights_sha256


def test_a_damaged_cache_is_not_believed(tmp_path: Path, own_cache: Path) -> None:
    base = save_base(tmp_path / "base", tiny_llama())
    first = fingerprint_base(base, byte_tokenizer())
    next(own_cache.iterdir()).write_text("nonsense")
    assert fingerprint_base(base, byte_tokenizer()) == first


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    base = save_base(tmp_path / "base", tiny_llama())
    assert re.fullmatch("[0-9a-f]{64}", fingerprint_base(base, byte_tokenizer()).weights_sha256)


def test_many_processes_may_hash_at_once(tmp_path: Path, own_cache: Path) -> None:
    base = save_base(tmp_path / "base", tiny_llama())
    tokenizer = byte_tokenizer()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: fingerprint_base(base, tokenizer), range(16)))
    assert len(found) == 1
    assert len(list(own_cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:nothing", "is not bundled"),
        ("/nowhere/at/all", "is neither a directory nor a hub id"),
        ("../escape", "is neither a directory nor a hub id"),
        ("no one/has this", "is neither a directory nor a hub id"),
        ("nobody/has-this", "could not be fetched from the hub"),
    ],
)
def test_a_base_that_is_not_there_is_refused_with_the_way_out(name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        resolve_base(name)
    assert caught.value.code == "MODEL_NOT_FOUND"
    assert "builtin:nano, a directory" in str(caught.value)


def test_a_directory_must_hold_a_config_and_safetensors(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"has no config\.json"):
        resolve_base(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InvalidRequest, match=r"pickled checkpoints.*never opened"):
        resolve_base(str(tmp_path))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert resolve_base(str(tmp_path)) == tmp_path


def test_a_hub_id_is_fetched_without_code_or_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path, tiny_llama())
    asked = {}

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked[repo_id] = allow_patterns
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_base("someone/model-1.0") == base
    patterns = asked["someone/model-1.0"]
    assert "*.safetensors" in patterns
    assert not any(p.endswith((".py", ".bin", ".pt", "*")) for p in patterns)
