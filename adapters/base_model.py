"""Reads the base model of a directory: config, tokenizer and all weights, or nothing.

transformers only warns of weights that are missing and fills them with random numbers, and asks at
the terminal whether to run code that comes with a checkpoint. Here the first is refused and the
second never done.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from polygraft.adapters.errors import ModelRefused, PolygraftError

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"\.(\d+)\.")
_SHOWN = 5  # names in a message at most


def load_config(path: Path) -> PreTrainedConfig:
    """config.json of a base. Raises ModelRefused."""
    with refused_if_it_fails("config.json", file="config.json"):
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=False
        )
    return config


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base. Raises ModelRefused."""
    with refused_if_it_fails("the tokenizer", file="tokenizer.json"):
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
    return tokenizer


def load_model(path: Path, dtype: torch.dtype, **settings: Any) -> PreTrainedModel:
    """The causal LM, frozen and in eval mode, every weight of it from the checkpoint.

    `settings` go to transformers' `from_pretrained`. Raises ModelRefused.
    """
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    options = {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    with refused_if_it_fails("loading the model"):
        loaded: tuple[PreTrainedModel, dict[str, Any]] = load(path, **options, **settings)
    model, info = loaded
    _require_all(sorted(info["missing_keys"]))
    _require_layers(sorted(info["unexpected_keys"]), model.config.get_text_config())
    model.requires_grad_(False)
    model.train(False)
    return model


@contextmanager
def refused_if_it_fails(doing: str, *, file: str | None = None) -> Iterator[None]:
    """An exception of transformers or of a model's own code becomes a ModelRefused."""
    try:
        yield
    except PolygraftError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ModelRefused(
            f"{doing} failed: {type(error).__name__}: {text}",
            file=file,
            item="model",
            hint="Code that comes with a checkpoint is never run."
            if "trust_remote_code" in text
            else "Serve a complete decoder-only model that this transformers "
            f"({transformers.__version__}) knows.",
        ) from error


def _require_all(missing: Sequence[str]) -> None:
    if missing:
        raise ModelRefused(
            f"the checkpoint lacks {len(missing)} weights that its config asks for, among them "
            f"{', '.join(missing[:_SHOWN])}; transformers would fill them with random numbers.",
            file="config.json",
            item=missing[0],
            hint="Give the config.json that the weights were saved with, and all weight files.",
        )


def _require_layers(unused: Sequence[str], config: PreTrainedConfig) -> None:
    """Whole layers that the config does not count are refused, other extras only logged."""
    count = config.num_hidden_layers
    dropped = [key for key in unused if (m := _LAYER.search(key)) and int(m[1]) >= count]
    if dropped:
        raise ModelRefused(
            f"the checkpoint has layers beyond the {count} of its config, such as {dropped[0]}; "
            "they would be left out.",
            file="config.json",
            item="num_hidden_layers",
            found=count,
            hint="Give the config.json that the weights were saved with.",
        )
    if unused:
        logger.warning(
            "%d tensors of the checkpoint are not used: %s", len(unused), ", ".join(unused[:_SHOWN])
        )
