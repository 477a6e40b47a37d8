"""A base is read as a whole, without running its code, or refused with the file that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_support.architectures import SERVED
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, save_base

from polygraft.adapters.base_model import load_config, load_model, load_tokenizer
from polygraft.adapters.errors import ModelRefused

Damage = Callable[[Path], object]


def change(**keys: object) -> Damage:
    def damage(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, **keys}))

    return damage


def read(base: Path) -> None:
    load_config(base)
    load_tokenizer(base)
    load_model(base, torch.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", SERVED["llama"].build(), byte_tokenizer())


def test_a_complete_base_is_frozen(base: Path) -> None:
    model = load_model(base, torch.bfloat16)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(num_hidden_layers=3), r"lacks 9 weights.*model\.layers\.2.*random numbers"),
        (change(num_hidden_layers=1), r"layers beyond the 1 of its config"),
        (change(hidden_size=64, head_dim=16), "loading the model failed"),
        (change(vocab_size=100), "loading the model failed"),
        (change(num_attention_heads="four"), r"config\.json.*num_attention_heads"),
        (change(model_type="llama-of-mine"), r"config\.json.*llama-of-mine"),
        (change(model_type="vit"), "loading the model failed"),
        (lambda base: (base / "config.json").write_text("{"), r"config\.json"),
        (lambda base: (base / "tokenizer.json").write_text("{"), r"tokenizer\.json"),
        (lambda base: (base / "tokenizer.json").unlink(), r"tokenizer\.json"),
        (lambda base: (base / "model.safetensors").write_bytes(b"1234567890"), "loading the model"),
    ],
)
def test_a_damaged_base_is_refused(base: Path, damage: Damage, message: str) -> None:
    damage(base)
    with pytest.raises(ModelRefused, match=message):
        read(base)


def test_a_weight_that_is_missing_is_not_made_up(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_model(base, torch.float32)


def test_tensors_that_no_layer_uses_are_logged(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(base / "model.safetensors")
    weights["value_head.weight"] = torch.zeros(1)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    load_model(base, torch.float32)
    assert "value_head.weight" in caplog.text


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_nor_asked_about(
    base: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks at the terminal unless it is told not to."""
    ran = base / "ran"
    (base / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: ...\n")
    settings = json.loads((base / part).read_text())
    settings["auto_map"] = {
        "AutoConfig": "mine.C",
        "AutoModelForCausalLM": "mine.C",
        "AutoTokenizer": ["mine.C", "mine.C"],
    }
    settings |= {"model_type": "mine"} if part == "config.json" else {"tokenizer_class": "Mine"}
    (base / part).write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelRefused, match="never run"):
        read(base)
    assert not ran.exists()
