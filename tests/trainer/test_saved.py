"""What is written is what was trained, without traces of this machine."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import tiny_llama
from transformers import PreTrainedTokenizerFast

from polygraft.adapters.fingerprint import Fingerprint
from polygraft.trainer.config import Lora, RunConfig, SoftPrompt
from polygraft.trainer.frozen_base import FrozenBase
from polygraft.trainer.methods import attach
from polygraft.trainer.saved import save_adapter


@pytest.mark.parametrize(
    "method", [Lora(r=4, rslora=True), Lora(targets=("up_proj", "q_proj")), SoftPrompt()]
)
@torch.no_grad()
def test_a_saved_adapter_loads_to_the_same_logits(
    method: Lora | SoftPrompt, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_llama()
    model.config._name_or_path = "/home/someone/secret/model"
    base = FrozenBase("tiny", model, tokenizer, Fingerprint("a", "b", "c"), ())
    config = RunConfig.model_validate({"data": {"task": "builtin:dsum"}, "method": method})
    trained = attach(base, config, "List.")
    trained.train(False)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(trained, base, tmp_path)
    ids = torch.tensor([[1, 2, 3, 4]])
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    loaded.train(False)
    assert torch.equal(loaded(input_ids=ids).logits, trained(input_ids=ids).logits)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    text = (tmp_path / "adapter_config.json").read_text()
    assert "secret" not in text
    written = json.loads(text)
    assert written["base_model_name_or_path"] == "tiny"
    targets = written.get("target_modules") or []
    assert targets == sorted(targets)
