"""Reads the adapters of methods that no server computes, to score them here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.trainer.config import Full, Houlsby, Selective
from polygraft.trainer.methods import attach_unserved
from polygraft.trainer.methods.adapted import AdaptedModel

_TYPES = ("HOULSBY", "SELECTIVE", "FULL")
_SETTINGS: TypeAdapter[Houlsby | Selective | Full] = TypeAdapter(Houlsby | Selective | Full)
_OTHER_KEYS = ("peft_type", "base_model_name_or_path")


def is_unserved(files: Mapping[str, Path]) -> bool:
    """Whether the adapter is of a kind that only the trainer knows."""
    return _config(files).get("peft_type") in _TYPES


def load_unserved(model: PreTrainedModel, files: Mapping[str, Path]) -> AdaptedModel:
    """The base changed as the adapter says. Raises AdapterInvalid unless it fits the base."""
    config = _config(files)
    settings = {key: value for key, value in config.items() if key not in _OTHER_KEYS}
    try:
        adapted = attach_unserved(model, _SETTINGS.validate_python(settings), seed=0)
        adapted.load_trained(load_file(files[WEIGHTS_FILE]))
    except (ValidationError, ValueError) as error:
        raise AdapterInvalid(f"{error}.", file=str(files[CONFIG_FILE])) from None
    adapted.train(False)
    return adapted


def _config(files: Mapping[str, Path]) -> dict[str, object]:
    return dict(json.loads(files[CONFIG_FILE].read_text(encoding="utf-8")))
