"""Tiny random models of many architectures: which are served exactly, which are refused, why.

docs/models.md lists the same ones (tests/house/test_models_page.py compares). Windows, chunks and
the like are a few tokens long here, so that every request passes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
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


@dataclass(frozen=True)
class Refusal:
    """One architecture that is refused, and a part of the reason that is given."""

    config: Callable[[], PreTrainedConfig]
    reason: str

    def build(self) -> PreTrainedModel:
        """The random model."""
        return Case(self.config).build()


def _config(kind: str, **changes: object) -> Callable[[], PreTrainedConfig]:
    return lambda: AutoConfig.for_model(kind, **{**_SHAPE, **changes})


def _case(kind: str, attention: str = "q_proj", mlp: str = "down_proj", **changes: object) -> Case:
    return Case(_config(kind, **changes), Architecture(attention, mlp))


_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    "moe_intermediate_size": 32,
}


def _experts(kind: str, attention: str = "q_proj", **changes: object) -> Case:
    """A mixture of experts, which take no adapters; PEFT would turn the names of their projections
    into `target_parameters`, so only the attention's are named."""
    names = Architecture(attention, "o_proj", all_linear=r".*self_attn\.\w+_proj\w*")
    return Case(_config(kind, **{**_EXPERTS, **changes}), names)


_ALTERNATING = ["sliding_attention", "full_attention"]
_WINDOWS = {"sliding_window": 24, "layer_types": _ALTERNATING}
_GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_ALL_HEADS = {"num_key_value_heads": 4}  # no grouping; PEFT's prefix tuning asks the config
_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256, **_ALL_HEADS}


def _gemma3_with_vision() -> PreTrainedConfig:
    """The multimodal form, of which text is served."""
    text = {"head_dim": 12, "query_pre_attn_scalar": 12, **_WINDOWS}
    vision = {"hidden_size": 32, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3Config(
        text_config={**_SHAPE, **text}, vision_config={**vision, **layers}, mm_tokens_per_image=4
    )


_GEMMA3_LANGUAGE = Architecture(  # LoRA on the vision tower would be refused
    "language_model.layers.0.self_attn.q_proj",
    "language_model.layers.1.mlp.down_proj",
    all_linear=r".*language_model.*proj",
)


SERVED: dict[str, Case] = {
    "llama": _case("llama"),
    "qwen3": _case("qwen3", head_dim=12),
    "gemma3": _case("gemma3_text", head_dim=12, query_pre_attn_scalar=12, **_WINDOWS),
    "gemma3_vision": Case(_gemma3_with_vision, _GEMMA3_LANGUAGE),
    "gpt2": _case("gpt2", "c_attn", "c_fc", **_GPT2),
    "gpt_oss": _experts("gpt_oss", head_dim=12, **_WINDOWS),
    "gemma2": _case("gemma2", head_dim=12, query_pre_attn_scalar=12, **_WINDOWS),
    "phi3": _case("phi3", "qkv_proj"),
    "mistral": _case("mistral", sliding_window=20),
    "qwen2": _case("qwen2"),
    "gemma": _case("gemma", head_dim=12),
    "vaultgemma": _case("vaultgemma", head_dim=12, query_pre_attn_scalar=12, **_WINDOWS),
    "phi": _case("phi", mlp="fc1"),
    "gpt_neox": _case("gpt_neox", "query_key_value", "dense_h_to_4h", **_ALL_HEADS),
    "gpt_bigcode": _case("gpt_bigcode", "c_attn", "c_fc", **{**_GPT2, "num_key_value_heads": 1}),
    "opt": _case("opt", mlp="fc1", ffn_dim=96, word_embed_proj_dim=48, **_ALL_HEADS),
    "olmo": _case("olmo"),
    "olmo2": _case("olmo2"),
    "olmo3": _case("olmo3", **_WINDOWS),
    "cohere": _case("cohere"),
    "cohere2": _case("cohere2", **_WINDOWS),
    "starcoder2": _case("starcoder2", mlp="c_fc"),
    "stablelm": _case("stablelm", hidden_size=64),
    "granite": _case("granite"),
    "smollm3": _case("smollm3"),
    "ministral": _case("ministral", head_dim=12, **_WINDOWS),
    "ministral3": _case(
        "ministral3",
        head_dim=12,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16,  # queries are scaled behind each 16 positions
            "llama_4_scaling_beta": 0.5,
        },
    ),
    "exaone4": _case("exaone4", **_WINDOWS),
    "glm": _case("glm", head_dim=12, partial_rotary_factor=0.5),
    "glm4": _case("glm4", head_dim=12, partial_rotary_factor=0.5),
    "helium": _case("helium", head_dim=12),
    "arcee": _case("arcee"),
    "apertus": _case("apertus"),
    "nemotron": _case("nemotron"),
    "seed_oss": _case("seed_oss", head_dim=12),
    "hunyuan_v1_dense": _case("hunyuan_v1_dense", head_dim=12),
    "ernie4_5": _case("ernie4_5", head_dim=12),
    "internlm3": _case("internlm3", head_dim=12),
    "hyperclovax": _case("hyperclovax"),
    "nanochat": _case("nanochat", mlp="fc1"),
    "persimmon": _case("persimmon", "query_key_value", "dense_h_to_4h", **_ALL_HEADS),
    "modernbert-decoder": Case(
        _config("modernbert-decoder", local_attention=24, **_ALL_HEADS),
        Architecture("q_proj", "Wi", all_linear=r".*layers.*(proj|W[io])"),  # its head has a layer
    ),
    "mixtral": _experts("mixtral"),
    "qwen2_moe": _case("qwen2_moe", **_EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_moe": _experts("qwen3_moe", head_dim=12),
    "olmoe": _experts("olmoe"),
    "phimoe": _experts("phimoe", head_dim=12),
    "granitemoe": _experts("granitemoe"),
    "granitemoeshared": _case(
        "granitemoeshared", mlp="output_linear", **_EXPERTS, shared_intermediate_size=32
    ),
    "hunyuan_v1_moe": _experts("hunyuan_v1_moe", head_dim=12),
    "ernie4_5_moe": _experts("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_num_shared_experts=1),
    "glm4_moe": _experts("glm4_moe", head_dim=12, **_GROUPS),
    "dots1": _experts("dots1", head_dim=12, **_GROUPS),
    "deepseek_v2": _experts("deepseek_v2", "q_b_proj", **_GROUPS, **_LATENT),
    "deepseek_v3": _experts("deepseek_v3", "q_b_proj", **_GROUPS, **_LATENT),
    "minimax_m2": _experts("minimax_m2", head_dim=12),
    "mimo_v2_flash": _experts("mimo_v2_flash", head_dim=12, v_head_dim=8, **_WINDOWS),
    "gemma4": _case("gemma4_text", head_dim=12, hidden_size_per_layer_input=0, **_WINDOWS),
    "llama4": _experts("llama4_text", head_dim=12, intermediate_size_mlp=64),
}

_DELTA = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_PER_LAYER = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}
_PER_LAYER_REASON = "per-layer embeddings"
_NOT_ROUTED = "AttentionInterface"
_KEEPS_A_STATE = "layers of type"

REFUSED: dict[str, Refusal] = {
    "falcon": Refusal(_config("falcon"), _NOT_ROUTED),
    "bloom": Refusal(_config("bloom", n_layer=2, n_head=4, seq_length=256), _NOT_ROUTED),
    "gpt_neo": Refusal(
        _config("gpt_neo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
        _NOT_ROUTED,
    ),
    "gptj": Refusal(_config("gptj", **_GPT2, rotary_dim=4), _NOT_ROUTED),
    "codegen": Refusal(_config("codegen", **_GPT2, rotary_dim=4), _NOT_ROUTED),
    "mpt": Refusal(_config("mpt", d_model=48, n_heads=4, n_layers=2, max_seq_len=256), _NOT_ROUTED),
    "diffllama": Refusal(_config("diffllama"), _NOT_ROUTED),
    "rwkv": Refusal(_config("rwkv"), _NOT_ROUTED),
    "xlstm": Refusal(_config("xlstm", num_heads=4), _NOT_ROUTED),
    "mamba": Refusal(_config("mamba"), _KEEPS_A_STATE),
    "mamba2": Refusal(_config("mamba2", num_heads=4, head_dim=24), _KEEPS_A_STATE),
    "falcon_mamba": Refusal(_config("falcon_mamba"), _KEEPS_A_STATE),
    "falcon_h1": Refusal(_config("falcon_h1"), _KEEPS_A_STATE),
    "jamba": Refusal(_config("jamba"), _KEEPS_A_STATE),
    "recurrent_gemma": Refusal(_config("recurrent_gemma"), _KEEPS_A_STATE),
    "lfm2": Refusal(_config("lfm2", layer_types=["conv", "full_attention"]), _KEEPS_A_STATE),
    "minimax": Refusal(_config("minimax"), _KEEPS_A_STATE),
    "qwen3_next": Refusal(_config("qwen3_next", head_dim=12, **_DELTA, **_EXPERTS), _KEEPS_A_STATE),
    "qwen3_5": Refusal(_config("qwen3_5_text", head_dim=12, **_DELTA), _KEEPS_A_STATE),
    "nemotron_h": Refusal(
        _config("nemotron_h", mamba_num_heads=4, mamba_head_dim=24, **_EXPERTS), _KEEPS_A_STATE
    ),
    "olmo_hybrid": Refusal(_config("olmo_hybrid"), _KEEPS_A_STATE),
    "deepseek_v32": Refusal(_config("deepseek_v32", **_LATENT), "indexed_attention"),
    "doge": Refusal(_config("doge"), "mask of its own"),
    "gemma3n": Refusal(
        _config("gemma3n_text", head_dim=12, num_kv_shared_layers=0, **_PER_LAYER),
        _PER_LAYER_REASON,
    ),
    "gemma4_per_layer": Refusal(
        _config("gemma4_text", head_dim=12, **_PER_LAYER), _PER_LAYER_REASON
    ),
    "zamba2": Refusal(_config("zamba2", layers_block_type=["mamba", "hybrid"]), _KEEPS_A_STATE),
    "granitemoehybrid": Refusal(_config("granitemoehybrid", mamba_n_heads=4), _KEEPS_A_STATE),
    "bamba": Refusal(_config("bamba", mamba_n_heads=4), _KEEPS_A_STATE),
}
