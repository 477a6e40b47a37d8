"""Puts a PEFT adapter on a base, without what PEFT 0.21 says about transformers 5."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model
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


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed; nobody here can act on it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield
