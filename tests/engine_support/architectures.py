"""Tiny random models of many architectures, with the names of their projections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from engine_support.peft_adapters import Architecture

VOCAB = 264
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QKV = Architecture("q_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """One architecture: its config and the projections that the patterns touch."""

    config: Callable[[], PreTrainedConfig]
    names: Architecture = _QKV

    def build(self) -> PreTrainedModel:
        """The random model, in float32 and eval mode."""
        torch.manual_seed(7)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config())
        model.train(False)
        return model


def _config(kind: str, **changes: object) -> Callable[[], PreTrainedConfig]:
    return lambda: AutoConfig.for_model(kind, **{**_SHAPE, **changes})


SERVED: dict[str, Case] = {
    "llama": Case(_config("llama")),
    "qwen3": Case(_config("qwen3", head_dim=12)),
    "gemma3": Case(
        _config(
            "gemma3_text",
            head_dim=12,
            sliding_window=24,
            query_pre_attn_scalar=12,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "gpt2": Case(
        _config("gpt2", n_embd=48, n_layer=2, n_head=4, n_positions=256, num_key_value_heads=4),
        Architecture("c_attn", "c_fc"),
    ),
    "phi3": Case(_config("phi3"), Architecture("qkv_proj", "down_proj")),
    "mistral": Case(_config("mistral", sliding_window=20)),
    "qwen2": Case(_config("qwen2")),
    "gemma": Case(_config("gemma", head_dim=12)),
    "gemma2": Case(
        _config(
            "gemma2",
            head_dim=12,
            sliding_window=24,
            query_pre_attn_scalar=12,  # the soft caps are the family's own, 50 and 30
        )
    ),
    "phi": Case(_config("phi"), Architecture("q_proj", "fc1")),
    "gpt_neox": Case(
        _config("gpt_neox", num_key_value_heads=4), Architecture("query_key_value", "dense_h_to_4h")
    ),
    "opt": Case(
        _config("opt", ffn_dim=96, word_embed_proj_dim=48, num_key_value_heads=4),
        Architecture("q_proj", "fc1"),
    ),
    "olmo2": Case(_config("olmo2")),
    "cohere": Case(_config("cohere")),
    "starcoder2": Case(_config("starcoder2"), Architecture("q_proj", "c_fc")),
    "stablelm": Case(_config("stablelm", hidden_size=64)),
    "granite": Case(_config("granite")),
    "smollm3": Case(_config("smollm3")),
}

REFUSED: dict[str, Case] = {
    "falcon": Case(
        lambda: FalconConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ),
    "bloom": Case(
        lambda: BloomConfig(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=4, seq_length=256)
    ),
}
