"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190) and p-tuning (Liu et al. 2021,
arXiv:2103.10385) through PEFT.

PEFT starts a prefix at unit variance, far from any key or value of the base; here it starts at
zero, which is no prefix at all but one more place for attention to go, or small.
"""

from __future__ import annotations

import torch
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, TaskType
from transformers import PreTrainedModel

from polygraft.trainer.config import Prefix, PTuning
from polygraft.trainer.methods.peft_wrapping import wrap

START_STD = 0.02


def attach_prefix(model: PreTrainedModel, method: Prefix, *, seed: int) -> PeftModel:
    """Put `virtual_tokens` trainable keys and values in front of every layer's."""
    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.virtual_tokens
    )
    peft_model = wrap(model, config)
    weight = peft_model.get_parameter(
        f"prompt_encoder.{peft_model.active_adapter}.embedding.weight"
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.zero_()
        if method.init == "random":
            weight.copy_(torch.randn(weight.shape, generator=generator) * START_STD)
    return peft_model


def attach_p_tuning(model: PreTrainedModel, method: PTuning, *, seed: int) -> PeftModel:
    """Put `virtual_tokens` embeddings in front, made by a small trained encoder."""
    torch.manual_seed(seed)
    config = PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=method.virtual_tokens,
        encoder_hidden_size=method.encoder_hidden_size
        or model.config.get_text_config().hidden_size,
        encoder_reparameterization_type=method.encoder.upper(),
    )
    return wrap(model, config)
