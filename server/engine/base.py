"""Load a Hugging Face causal LM and decide whether this engine can serve it exactly.

The model runs on transformers' own modeling code. What cannot be right is refused here, by name:
models that bypass the attention interface, position scaling that depends on the whole batch,
attention features that are not computed, recurrent state.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from polygraft.adapters.errors import ModelRefused
from polygraft.adapters.fingerprint import fingerprint_base, resolve_base
from polygraft.adapters.geometry import BaseGeometry, describe_base
from polygraft.server.engine.config import EngineConfig

logger = logging.getLogger(__name__)

_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base model in eval mode, with the facts that adapters are checked against."""

    model: transformers.PreTrainedModel
    config: Any  # the text config: hidden_size, num_hidden_layers, ...
    tokenizer: transformers.PreTrainedTokenizerBase
    geometry: BaseGeometry
    dtype: torch.dtype
    eos_token_ids: frozenset[int]
    context_length: int


def load_base(name_or_path: str | Path, config: EngineConfig) -> LoadedBase:
    """Load weights and tokenizer from a directory, a hub id, or `builtin:nano`.

    Raises ModelRefused when the architecture is known to be wrong here, InvalidRequest when the
    directory is missing or incomplete.
    """
    path = resolve_base(str(name_or_path))
    model_config = transformers.AutoConfig.from_pretrained(path)
    text_config = model_config.get_text_config()
    refuse_config(model_config, text_config)
    dtype = choose_dtype(config.dtype, getattr(model_config, "dtype", None))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa"
        )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        # The probe decides whether the attention interface works; loading must not.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="eager"
        )
    model.train(False)
    model.requires_grad_(False)
    name = str(name_or_path) if str(name_or_path).startswith("builtin:") else path.name
    geometry = describe_base(
        model, model_config, name=name, fingerprint=fingerprint_base(path, tokenizer)
    )
    context = geometry.context_length
    return LoadedBase(
        model=model,
        config=text_config,
        tokenizer=tokenizer,
        geometry=geometry,
        dtype=dtype,
        eos_token_ids=eos_ids(model, tokenizer),
        context_length=min(context, config.max_context) if config.max_context else context,
    )


def refuse_config(model_config: Any, text_config: Any) -> None:
    """Refuse what is known from the configuration alone. Raises ModelRefused."""
    if getattr(model_config, "is_encoder_decoder", False):
        raise ModelRefused("encoder-decoder models are not supported; serve a decoder-only model.")
    rope = getattr(text_config, "rope_parameters", None) or {}
    scalings = rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]
    for scaling in scalings:
        kind = (scaling or {}).get("rope_type", "default")
        if kind in _BATCH_DEPENDENT_ROPE:
            raise ModelRefused(
                f"RoPE scaling {kind!r} changes with the longest sequence of the batch, so one "
                "request would alter another's result.",
                item="rope_parameters.rope_type",
                found=kind,
                allowed="default, linear, yarn, llama3",
                hint="Serve a copy whose config.json has the unscaled context length.",
            )


def choose_dtype(wanted: str, checkpoint: torch.dtype | None) -> torch.dtype:
    """The serving dtype. auto keeps the checkpoint's, but bfloat16 only where it is native."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if checkpoint in (torch.bfloat16, torch.float16) and _has_native_bfloat16():
        return torch.bfloat16
    return torch.float32


def _has_native_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def eos_ids(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> frozenset[int]:
    """End-of-sequence ids: the generation config's (one or a list), else the tokenizer's."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list | tuple) else [eos])


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits; it is never an adapter site."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    return head
