"""Load a Hugging Face causal LM and decide whether this engine can serve it exactly.

The model runs on transformers' own modeling code. What cannot be right is refused by name: here
what shows in the configuration, in the probe what shows when a few tokens run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from polygraft.adapters.base_model import load_config, load_model, load_tokenizer
from polygraft.adapters.errors import ModelRefused
from polygraft.adapters.fingerprint import fingerprint_base, resolve_base
from polygraft.adapters.geometry import BaseGeometry, context_length, describe_base
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.refusal import refuse_config, refuse_quantized

logger = logging.getLogger(__name__)


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

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.device


def load_base(name_or_path: str | Path, config: EngineConfig) -> LoadedBase:
    """Load weights and tokenizer from a directory, a hub id, or `builtin:nano`.

    Raises ModelRefused when the architecture is known to be wrong here, InvalidRequest when the
    directory is missing or incomplete.
    """
    path = resolve_base(str(name_or_path))
    model_config = load_config(path)
    text_config = model_config.get_text_config()
    context = context_length(text_config)
    context = min(context, config.max_context) if config.max_context else context
    refuse_config(model_config, text_config, context_length=context, step_tokens=config.step_tokens)
    checkpoint = getattr(model_config, "dtype", None)
    dtype = choose_dtype(config.dtype, checkpoint, is_on_gpu=config.is_on_gpu)
    tokenizer = load_tokenizer(path)
    model = _load_model(path, dtype)
    refuse_quantized(model.config)
    name = str(name_or_path) if str(name_or_path).startswith("builtin:") else path.name
    geometry = describe_base(
        model, model_config, name=name, fingerprint=fingerprint_base(path, tokenizer)
    )
    return LoadedBase(
        model=model,
        config=text_config,
        tokenizer=tokenizer,
        geometry=geometry,
        dtype=dtype,
        eos_token_ids=eos_ids(model, tokenizer),
        context_length=context,
    )


def _load_model(path: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """With attention that computes all that the model asks for: it is the gate's reference."""
    try:
        return load_model(path, dtype, attn_implementation="sdpa")
    except ModelRefused as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        # The probe decides whether the attention interface works; loading must not.
        return load_model(path, dtype, attn_implementation="eager")


def choose_dtype(
    wanted: str, checkpoint: torch.dtype | None, *, is_on_gpu: bool = False
) -> torch.dtype:
    """The serving dtype. auto keeps the checkpoint's, but bfloat16 only where it is native; on a
    GPU it is bfloat16."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if is_on_gpu:
        return torch.bfloat16
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
