"""What an adapter is checked against: the modules of the base and its dimensions.

Knows torch modules, no engine. Taken once from the freshly loaded model, before anything in it
is replaced, so that the names are those PEFT saw when the adapter was trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class NormShape:
    """One norm of the base. `is_by_token`: it normalises the row of a token once, as a whole."""

    width: int
    has_bias: bool
    is_by_token: bool = True


@dataclass(frozen=True, slots=True)
class TableShape:
    """The input embedding or the output head, W [num_rows, width].

    `is_plain`: it looks rows up (and multiplies them by one number), or is a plain linear layer.
    `sha256` is that of the weight's bytes in the serving dtype.
    """

    name: str = ""
    num_rows: int = 0
    width: int = 0
    has_bias: bool = False
    is_plain: bool = False
    sha256: str = ""


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
    keys and values, known only where the base has been run; empty elsewhere. `is_tied`: the head's
    weight is the embedding's.
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
    embedding: TableShape = TableShape()
    head: TableShape = TableShape()
    is_tied: bool = False
    norms: Mapping[str, NormShape] = field(default_factory=dict)

    def with_sites(self, names: Collection[str], norms: Collection[str]) -> BaseGeometry:
        """What is left when adapters can be applied to these linear modules and norms only."""
        modules = {
            name: shape
            if name in names or shape.kind == "lm_head"
            else replace(shape, kind="internal")
            for name, shape in self.modules.items()
        }
        by_token = {
            name: replace(shape, is_by_token=name in norms) for name, shape in self.norms.items()
        }
        return replace(self, modules=MappingProxyType(modules), norms=MappingProxyType(by_token))

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
    names = {id(module): name for name, module in model.named_modules()}
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
        embedding=_table(names[id(embedding)], embedding, _is_plain_embedding(embedding)),
        head=TableShape() if head is None else _table(names[id(head)], head, _is_plain(head)),
        is_tied=head is not None and head.weight is embedding.weight,
        norms=MappingProxyType(_norms(model)),
    )


def embedding_scale(embedding: nn.Module) -> float:
    """What an embedding multiplies its rows with, in its dtype."""
    scale: Any = getattr(embedding, "embed_scale", 1.0)
    weight: Any = embedding.weight
    return float(torch.as_tensor(scale).to(weight.dtype))


def hash_table(weight: Tensor) -> str:
    """sha256 of the bytes of a weight in its dtype."""
    data = weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def _linear_modules(model: nn.Module, head: nn.Module | None) -> dict[str, LinearShape]:
    # Why here: the process that checks uploads has no use for transformers.
    from transformers.pytorch_utils import Conv1D

    modules = {}
    for name, module in model.named_modules():
        has_bias = getattr(module, "bias", None) is not None
        if isinstance(module, Conv1D):
            in_features, out_features = module.weight.shape  # stored [in, out]
            shape = LinearShape(int(in_features), int(out_features), "conv1d", has_bias)
            modules[name] = shape
        elif isinstance(module, nn.Linear):
            kind = "lm_head" if module is head else "linear" if _is_plain(module) else "internal"
            modules[name] = LinearShape(module.in_features, module.out_features, kind, has_bias)
    return modules


def _norms(model: nn.Module) -> dict[str, NormShape]:
    """Modules called norms that have a weight [n], and a bias [n] or none."""
    norms = {}
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters())
        weight = parameters.get("weight")
        is_known = "Norm" in type(module).__name__ and parameters.keys() <= {"weight", "bias"}
        if is_known and weight is not None and weight.ndim == 1:
            norms[name] = NormShape(weight.numel(), "bias" in parameters)
    return norms


def _table(name: str, module: Any, is_plain: bool) -> TableShape:
    num_rows, width = module.weight.shape
    return TableShape(
        name=name,
        num_rows=int(num_rows),
        width=int(width),
        has_bias=getattr(module, "bias", None) is not None,
        is_plain=is_plain,
        sha256=hash_table(module.weight),
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether it computes W x + b: subclasses (routers, quantized layers) may do otherwise."""
    return type(module).forward is nn.Linear.forward


def _is_plain_embedding(module: nn.Module) -> bool:
    """Whether its rows are those of its weight, multiplied by one number at most."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        return False
    scale: Any = getattr(module, "embed_scale", None)
    is_scaled = (isinstance(scale, Tensor) and scale.numel() == 1) or isinstance(scale, float | int)
    return type(module).forward is nn.Embedding.forward or is_scaled


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
