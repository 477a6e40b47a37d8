"""Nothing in the trainer is about Llama: other architectures train, and answer as plain PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import BOS, EOS, VOCAB_SIZE, save_base, tiny_gpt2
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
)

from polygraft.trainer.config import RunConfig
from polygraft.trainer.frozen_base import load_tokenizer
from polygraft.trainer.run import train


def tiny_gemma3() -> Gemma3ForCausalLM:
    """Embeddings scaled inside their module, a sliding window, norms around every block."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=256,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.1,
    )
    model = Gemma3ForCausalLM(config)
    model.train(False)
    return model


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [{"kind": "lora", "r": 4}, {"kind": "prompt", "init": "vocab"}])
@pytest.mark.parametrize("make_model", [tiny_gpt2, tiny_gemma3])
@torch.no_grad()
def test_other_architectures_train_and_answer_as_plain_peft(
    make_model: Callable[[], PreTrainedModel],
    method: dict[str, object],
    dtype: str,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    base = save_base(tmp_path / "base", make_model())
    with torch.enable_grad():
        result = train(
            make_config(
                base={"path": str(base), "dtype": dtype},
                method=method,
                optim={"epochs": 1, "batch": 32, "lr": 0.02},
            )
        )
    if dtype == "bf16":
        return  # rounding may turn a near tie; that it trains is what is asked
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), result.directory / "adapter"
    )
    model.train(False)
    tokenizer = load_tokenizer(str(base))
    lines = (result.directory / "predictions.test.jsonl").read_text().splitlines()
    for line in lines[:4]:
        row = json.loads(line)
        ids = tokenizer.encode(row["variables"]["prompt"])
        made: list[int] = []
        while len(made) < 8 and EOS not in made:
            made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
        assert row["adapter"].startswith(tokenizer.decode(made, skip_special_tokens=True))
