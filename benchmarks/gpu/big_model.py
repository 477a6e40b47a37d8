"""A random Llama of a given shape with random PEFT adapters on all of its linear layers, on disk.

Made where the tensors are used: at 8 billion parameters the GPU draws them in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import _make_tokenizer, adapter_name

LLAMA_3_8B: dict[str, Any] = {  # the shape of meta-llama/Meta-Llama-3-8B, config.json
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
REHEARSAL: dict[str, Any] = {
    **LLAMA_3_8B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
RANK = 16


def make_base(
    folder: Path, shape: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    """Write model and tokenizer as `save_pretrained` does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**shape))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    _make_tokenizer(shape["vocab_size"]).save_pretrained(folder)


def make_adapters(
    folder: Path, shape: dict[str, Any], count: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Path]:
    """Name to directory of so many LoRAs of rank 16, A and B random."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, task_type="CAUSAL_LM",
        target_modules=sorted({name.rpartition(".")[2] for name, _, _ in linears(shape)}),
    )  # fmt: skip
    made = {}
    for index in range(count):
        own = folder / adapter_name(index)
        config.save_pretrained(str(own))
        tensors = _adapter(shape, seed=index, dtype=dtype, device=device)
        save_file(tensors, own / "adapter_model.safetensors")
        made[own.name] = own
    return made


def linears(shape: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name in a layer, inputs, outputs) of each linear layer."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    key_values = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    return [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", hidden, key_values),
        ("self_attn.v_proj", hidden, key_values),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", hidden, inner),
        ("mlp.up_proj", hidden, inner),
        ("mlp.down_proj", inner, hidden),
    ]


def _adapter(
    shape: dict[str, Any], *, seed: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, inputs, outputs in linears(shape):
            stem = f"base_model.model.model.layers.{layer}.{name}"
            a = torch.randn(RANK, inputs, device=device, generator=generator) / inputs**0.5
            b = torch.randn(outputs, RANK, device=device, generator=generator) * 0.01
            tensors[f"{stem}.lora_A.weight"] = a.to(dtype).cpu()
            tensors[f"{stem}.lora_B.weight"] = b.to(dtype).cpu()
    return tensors


def step_bytes(shape: dict[str, Any], *, rows: int, context: int, item_size: int) -> int:
    """The fewest bytes of a decode step without adapters: every linear weight, the head, and the
    keys and values of each row's context."""
    weights = sum(inputs * outputs for _, inputs, outputs in linears(shape))
    weights = weights * shape["num_hidden_layers"] + shape["vocab_size"] * shape["hidden_size"]
    width = shape["hidden_size"] // shape["num_attention_heads"] * shape["num_key_value_heads"]
    key_values = 2 * shape["num_hidden_layers"] * width * context * rows
    return int((weights + key_values) * item_size)
