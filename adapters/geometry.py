"""What an adapter is checked against: the linear modules of the base and its dimensions.

Knows torch modules, no engine. Taken once from the freshly loaded model, before anything in it
is replaced, so that the names are those PEFT saw when the adapter was trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.fingerprint import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Names that configs use for the context length, the most common first. transformers maps
# `n_positions` and the like onto the first one for most architectures.
CONTEXT_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class LinearShape:
    """One linear module of the base: y [out_features] = W x [in_features].

    `kind` is "linear", "conv1d" (GPT-2's transposed storage; same shapes here), "lm_head" or
    "internal": the base uses it otherwise than once per token as y = W x (routers, experts,
    quantized layers), so that no adapter on it can be applied.
    """

    in_features: int
    out_features: int
    kind: str


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one attention layer keeps of a token: `heads` keys and values of these widths."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class BaseGeometry:
    """What adapters are checked against.

    `modules` maps dotted names as in `model.named_modules()` to shapes, the output head
    included. `hidden_size` is the width of the rows of `inputs_embeds`. `dtype` is the dtype in
    which the base is served ("float32", "bfloat16", "float16"). `kv` is the shape of every layer's
    keys and values, known only where the base has been run; empty elsewhere.
    """

    name: str
    architecture: str
    modules: Mapping[str, LinearShape]
    hidden_size: int
    num_layers: int
    vocab_size: int
    context_length: int
    dtype: str
    fingerprint: Fingerprint
    kv: tuple[KVShape, ...] = ()

    def with_sites(self, names: Collection[str]) -> BaseGeometry:
        """What is left when adapters can be applied to these linear modules only."""
        modules = {
            name: shape
            if name in names or shape.kind == "lm_head"
            else replace(shape, kind="internal")
            for name, shape in self.modules.items()
        }
        return replace(self, modules=MappingProxyType(modules))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


def describe_base(
    model: nn.Module, config: PreTrainedConfig, *, name: str, fingerprint: Fingerprint
) -> BaseGeometry:
    """The geometry of a loaded transformers causal LM. Call before modules are replaced.

    Raises InvalidRequest when the config does not say how long a context may be.
    """
    text_config = config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return BaseGeometry(
        name=name,
        architecture=type(model).__name__,
        modules=MappingProxyType(_linear_modules(model, head)),
        hidden_size=int(embedding.weight.shape[1]),
        num_layers=int(text_config.num_hidden_layers),
        vocab_size=int(text_config.vocab_size),
        context_length=context_length(text_config),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        fingerprint=fingerprint,
    )


def _linear_modules(model: nn.Module, head: nn.Module | None) -> dict[str, LinearShape]:
    # Why here: the process that checks uploads has no use for transformers.
    from transformers.pytorch_utils import Conv1D

    modules = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            in_features, out_features = module.weight.shape  # stored [in, out]
            modules[name] = LinearShape(int(in_features), int(out_features), "conv1d")
        elif isinstance(module, nn.Linear):
            is_plain = type(module).forward is nn.Linear.forward  # subclasses: routers, quantized
            kind = "lm_head" if module is head else "linear" if is_plain else "internal"
            modules[name] = LinearShape(module.in_features, module.out_features, kind)
    return modules


def context_length(config: PreTrainedConfig) -> int:
    """Positions that the model was made for, by its text config. Raises InvalidRequest."""
    for key in CONTEXT_LENGTH_KEYS:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    raise InvalidRequest(
        f"the config of the base names no context length (looked for {CONTEXT_LENGTH_KEYS}).",
        reason="MODEL_REFUSED",
        file="config.json",
        hint="Add max_position_embeddings with the length the model was trained for.",
    )
