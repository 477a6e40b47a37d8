"""Our benchmark models and their LoRAs as llama.cpp reads them. Only Llama's architecture.

llama.cpp rotates neighbouring values of a head where transformers rotates its halves, so the rows
that make queries and keys are put into its order (convert_hf_to_gguf.py, `permute`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.peers.gguf import Value, write_gguf

MODULES = {  # module of a layer in transformers to tensor of a block in llama.cpp
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight$")
LORA = re.compile(r"base_model\.(model\.model\.layers\.\d+\..+)\.(lora_[AB])\.weight$")
NORMAL, CONTROL = 1, 3  # token types


def write_model(folder: Path, path: Path) -> None:
    """Convert a checkpoint directory as `save_pretrained` writes it."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    fields = {**_architecture(config), **_vocabulary(config["vocab_size"])}
    write_gguf(path, fields, dict(_renamed(weights, config)))


def write_adapter(folder: Path, base: Path, path: Path) -> None:
    """Convert a PEFT LoRA directory for a base of ours."""
    config = json.loads((base / "config.json").read_text())
    lora = json.loads((folder / "adapter_config.json").read_text())
    fields: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(lora["lora_alpha"]),
    }
    tensors = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        found = LORA.match(key)
        if found is None:
            raise ValueError(f"{key} is no LoRA of a layer")
        module, part = found.group(1).removeprefix("model."), found.group(2)
        name, heads = _target(f"{module}.weight", config)
        rows_are_outputs = part == "lora_B"
        ordered = _permuted(tensor, heads) if heads and rows_are_outputs else tensor
        tensors[f"{name}.{part.lower()}"] = ordered
    write_gguf(path, fields, tensors)


def _architecture(config: dict[str, Any]) -> dict[str, Value]:
    """What llama.cpp needs to know of a Llama config."""
    if config["model_type"] != "llama":
        raise ValueError(f"{config['model_type']} is not converted, only llama")
    return {
        "general.architecture": "llama",
        "general.name": "benchmark",
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    }


def _vocabulary(size: int) -> dict[str, Value]:
    """A made-up vocabulary: prompts and outputs are token ids.

    Every token is text of its own in ASCII, because the server streams no id before the text that
    it belongs to is whole.
    """
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": ["<|endoftext|>", *(f"w{index}" for index in range(1, size))],
        "tokenizer.ggml.token_type": [CONTROL, *[NORMAL] * (size - 1)],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def _renamed(
    weights: dict[str, torch.Tensor], config: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in weights.items():
        name, heads = _target(key, config)
        ordered = _permuted(tensor, heads) if heads else tensor
        # Why: llama.cpp multiplies by norm weights in float32 only.
        yield name, ordered.float() if tensor.dim() == 1 else ordered


def _target(key: str, config: dict[str, Any]) -> tuple[str, int]:
    """llama.cpp's name of a weight, and by how many heads its rows are to be permuted (0: not)."""
    if key in OUTSIDE:
        return OUTSIDE[key], 0
    found = LAYER.match(key)
    if found is None or found.group(2) not in MODULES:
        raise ValueError(f"{key} is no weight of a Llama model")
    layer, module = found.groups()
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }
    return f"blk.{layer}.{MODULES[module]}.weight", heads.get(module, 0)


def _permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * (2 halves * pairs), columns] to [heads * (pairs * 2), columns]."""
    halves = rows.view(heads, 2, -1, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)
