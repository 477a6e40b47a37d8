"""Adapters of every kind that PEFT can write, made by PEFT itself, and what becomes of each.

A case either equals PEFT's logits or is refused, by a message that names what it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from adapter_support.directories import peft_warnings_ignored
from peft import PeftConfig, PeftModel, get_peft_model
from tiny_models import byte_tokenizer, save_base, tiny_gpt2, tiny_llama
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine_support.architectures import SERVED


@dataclass(frozen=True)
class Names:
    """How the parts of a base are called."""

    build: Callable[[], PreTrainedModel]
    attention: str
    mlp: str
    embedding: str = "embed_tokens"
    layers: str = "layers"
    final_norm: str = "norm"
    is_tied: bool = False

    @property
    def both(self) -> list[str]:
        """Two projections."""
        return [self.attention, self.mlp]


BASES: Mapping[str, Names] = {
    "llama": Names(tiny_llama, "q_proj", "down_proj", is_tied=True),
    "gpt2": Names(tiny_gpt2, "c_attn", "c_fc", "wte", "h", "ln_f", is_tied=True),
    "qwen3": Names(SERVED["qwen3"].build, "q_proj", "down_proj"),
    "phi3": Names(SERVED["phi3"].build, "qkv_proj", "down_proj"),
    "qwen3_moe": Names(SERVED["qwen3_moe"].build, "q_proj", "o_proj"),
    # Rows of the embedding are multiplied, norms are 1 + weight; a head with a bias; biases only.
    "gemma3": Names(
        SERVED["gemma3"].build,
        "q_proj",
        "down_proj",
        final_norm="post_feedforward_layernorm",
        is_tied=True,
    ),
    "phi": Names(SERVED["phi"].build, "q_proj", "fc1", final_norm="final_layernorm"),
    "opt": Names(SERVED["opt"].build, "q_proj", "fc1", final_norm="final_layer_norm", is_tied=True),
}
ALL = ("llama", "gpt2", "qwen3", "phi3")
ODD = ("gemma3", "phi", "opt")
Prepare = Callable[[PreTrainedModel, Any], None]


@dataclass(frozen=True)
class Case:
    """One configuration of PEFT. `refused`: what the refusal says, None if it is served."""

    name: str
    feature: str  # a row of polygraft.adapters.features
    config: Callable[[Names], PeftConfig]
    refused: str | None = None
    bases: tuple[str, ...] = ALL
    prepare: Prepare | None = None  # before PEFT wraps the base
    begin: Callable[[PeftModel], None] | None = None  # after it
    converts: bool = False  # saved as the difference to the untrained adapter
    edit: Callable[[Path], None] | None = None  # of the folder that was saved
    save: Mapping[str, Any] = field(default_factory=lambda: {"save_embedding_layers": False})


def save_corpus_base(name: str, directory: Path) -> Path:
    """Write the base `name` with the byte tokenizer."""
    return save_base(directory, BASES[name].build(), byte_tokenizer())


def save_case(case: Case, base_name: str, base: Path, directory: Path) -> PeftModel:
    """Let PEFT make, train (at random) and save the adapter; returns the model with it."""
    torch.manual_seed(len(case.name))
    with peft_warnings_ignored(), _deterministic():
        config = case.config(BASES[base_name])
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.train(False)
        if case.prepare is not None:
            case.prepare(model, config)
        trained = get_peft_model(model, config)
        if case.begin is not None:
            case.begin(trained)
        settings = dict(case.save)
        if case.converts:
            settings["path_initial_model_for_weight_conversion"] = str(directory / "initial")
            _save_initial(trained, directory / "initial")
        _train(trained, noise_only=case.converts)
        trained.train(False)
        trained.save_pretrained(str(directory), **settings)
    if case.edit is not None:
        case.edit(directory)
    return trained


def _save_initial(model: PeftModel, directory: Path) -> None:
    config: Any = model.peft_config["default"]
    name, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(str(directory))
    config.init_lora_weights = name


@torch.no_grad()
def _train(model: nn.Module, *, noise_only: bool) -> None:
    """Move everything that is trainable."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if noise_only or parameter.ndim < 2 or "lora_" not in name:
            std = 0.05 if noise_only else 0.2
            parameter.add_(torch.randn_like(parameter), alpha=std)
        else:
            nn.init.normal_(parameter, std=0.5 / parameter.shape[1] ** 0.5)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Some initialisations draw random numbers from numpy's or torch's global state."""
    with torch.random.fork_rng():
        yield


@torch.inference_mode()
def logits_of(model: nn.Module, ids: list[int]) -> Tensor:
    """Logits [len(ids), vocab_size] of the tokens, without those of virtual tokens."""
    logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
    return logits.float()


def load_peft(base: Path, directory: Path) -> nn.Module:
    """The base with the adapter as PEFT reads it from disk."""
    with peft_warnings_ignored():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        loaded: nn.Module = PeftModel.from_pretrained(model, str(directory))
    loaded.train(False)
    return loaded
