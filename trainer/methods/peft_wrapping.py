"""Puts a PEFT adapter on a base, without what PEFT 0.21 says about transformers 5."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import PreTrainedModel


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """`get_peft_model`: the base in place, its weights frozen."""
    with _quiet():
        return get_peft_model(model, config)


def load(model: PreTrainedModel, directory: Path) -> PeftModel:
    """`PeftModel.from_pretrained`, to answer with."""
    with _quiet():
        peft_model = PeftModel.from_pretrained(model, str(directory))
    peft_model.train(False)
    return peft_model


def saved_tensors(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT would save, by the names in its file."""
    with _quiet():
        return dict(get_peft_model_state_dict(peft_model, save_embedding_layers=False))


def load_tensors(peft_model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors of a PEFT file in place, into the parameters that there are."""
    with _quiet(), torch.no_grad():
        set_peft_model_state_dict(peft_model, dict(tensors))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed; nobody here can act on it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield
