"""Loads the base that an adapter is trained on, frozen, with what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from polygraft.adapters import base_model
from polygraft.adapters.fingerprint import Fingerprint, fingerprint_base, resolve_base
from polygraft.trainer.errors import RecipeError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class FrozenBase:
    """A base model without trainable parameters."""

    name: str
    """What stands in adapters made on it: a builtin name or hub id, never a private path."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: Fingerprint
    configured_eos: tuple[int, ...]
    """What ends a sequence by the generation config, so on any server; may be empty."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Everything that ends an answer; the first is the one that training supervises."""
        return tuple(dict.fromkeys([int(self.tokenizer.eos_token_id), *self.configured_eos]))


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone: enough to check data before a large base is read.

    Raises InvalidRequest when the base is missing, ModelRefused when its tokenizer cannot be read,
    RecipeError when no completion could end.
    """
    tokenizer = base_model.load_tokenizer(resolve_base(name_or_path))
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            "the base's tokenizer has no end-of-sequence token, so no answer could end.",
            file=name_or_path,
            item="eos_token",
            hint="Set eos_token in the base's tokenizer_config.json.",
        )
    return tokenizer


def read_context_length(name_or_path: str) -> int | None:
    """Positions the base has, or None where its config does not say."""
    config = base_model.load_config(resolve_base(name_or_path)).get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return None if length is None else int(length)


def load_frozen_base(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, *, dtype: str, device: str
) -> FrozenBase:
    """Load and freeze a base. Raises InvalidRequest when it is missing or not safetensors,
    ModelRefused when it is incomplete."""
    path = resolve_base(name_or_path)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = base_model.load_model(path, _DTYPES[dtype])
    model.to(torch.device(device))  # type: ignore[arg-type]
    return FrozenBase(
        name=public_name(name_or_path),
        model=model,
        tokenizer=tokenizer,
        fingerprint=fingerprint_base(path, tokenizer),
        configured_eos=_configured_eos(model),
    )


def public_name(name_or_path: str) -> str:
    """A builtin name or hub id as it is; of a directory only the last part."""
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.is_dir() else name_or_path


def _configured_eos(model: PreTrainedModel) -> tuple[int, ...]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        return ()
    return tuple(configured) if isinstance(configured, list) else (int(configured),)
