"""Wraps a base with a fresh PEFT adapter, without what PEFT 0.21 says about transformers 5."""

from __future__ import annotations

import warnings

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """`get_peft_model`: the base in place, its weights frozen."""
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed; nobody here can act on it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return get_peft_model(model, config)
