"""A merged model is the adapter's: read back by plain transformers, on tied, merged and Conv1D
layers, and refused where it would be another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny_models import byte_tokenizer, save_base, tiny_gpt2, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from polygraft.cli import app
from polygraft.trainer.methods.houlsby import HoulsbyModel

MODELS: dict[str, Any] = {"llama": tiny_llama, "gpt2": tiny_gpt2}
CONFIGS: dict[str, tuple[str, PeftConfig]] = {
    "lora": ("llama", LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"])),
    "rslora": ("llama", LoraConfig(r=4, use_rslora=True, target_modules="all-linear")),
    "dora": ("llama", LoraConfig(r=4, use_dora=True, target_modules=["v_proj", "up_proj"])),
    "conv1d": ("gpt2", LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)),
}


def save(folder: Path, kind: str, config: PeftConfig) -> tuple[Path, Path]:
    base = save_base(folder / "base", MODELS[kind]())
    torch.manual_seed(1)
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(MODELS[kind](), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return base, folder / "adapter"


def merge(adapter: Path, base: Path, *more: str) -> Result:
    out = adapter.parent / "merged"
    command = ["merge", str(adapter), "--base", str(base), "--out", str(out), *more]
    return CliRunner().invoke(app, command)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_plain_transformers_computes_what_peft_computes(name: str, tmp_path: Path) -> None:
    kind, config = CONFIGS[name]
    base, adapter = save(tmp_path, kind, config)
    result = merge(adapter, base, "--json")
    assert result.exit_code == 0, result.output
    proof = json.loads(result.stdout)
    assert proof["error"] < 1e-6 < 0.01 < proof["effect"]
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(2))
    peft_model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    peft_model.train(False)
    wanted = peft_model(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(merged(input_ids=ids).logits, wanted, atol=1e-5)
    assert not hasattr(merged, "peft_config")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("a b")["input_ids"] == byte_tokenizer()("a b")["input_ids"]


def test_rounding_is_measured_apart(tmp_path: Path) -> None:
    base, adapter = save(tmp_path, *CONFIGS["lora"])
    result = merge(adapter, base, "--dtype", "bf16")
    assert result.exit_code == 0, result.output
    assert "rounded to the dtype" in result.stdout
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # that is the case
def test_what_would_be_another_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    # The head is the embedding: its merge would change both.
    config = LoraConfig(r=4, target_modules=["lm_head"])
    base, adapter = save(tmp_path, "llama", config)
    result = merge(adapter, base)
    assert (result.exit_code, "is another model" in result.stderr) == (5, True), result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # that is the case
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor")  # PEFT doubts its own biases
def test_what_peft_cannot_merge_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_bias=True, target_modules=["o_proj"])  # which has none itself
    base, adapter = save(tmp_path, "llama", config)
    result = merge(adapter, base)
    assert result.exit_code == 5, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_is_no_change_of_weights_is_refused_by_name(tmp_path: Path) -> None:
    base, adapter = save(tmp_path, "llama", PromptTuningConfig(num_virtual_tokens=4))
    result = merge(adapter, base)
    assert (result.exit_code, "PROMPT_TUNING cannot be merged" in result.stderr) == (5, True)
    assert not (tmp_path / "merged").exists()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "HOULSBY"}))
    assert "HOULSBY cannot be merged" in merge(adapter, base).stderr
    assert HoulsbyModel  # the method that writes that name


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    base, adapter = save(tmp_path, *CONFIGS["lora"])
    (tmp_path / "merged").mkdir()
    assert merge(adapter, base).exit_code == 2
    assert merge(adapter, base, "--dtype", "int4").exit_code == 2
