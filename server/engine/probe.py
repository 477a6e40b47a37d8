"""The probe: a few tokens through the model, to learn what its layers really do.

A model that ignores the attention interface is only *warned* about by transformers and then gives
wrong tokens without an error (falcon, bloom); here it is refused. What the probe records per layer
(heads, widths) sizes the KV cache; config names are never trusted for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from polygraft.adapters.errors import ModelRefused
from polygraft.adapters.geometry import KVShape
from polygraft.server.engine.base import LoadedBase, output_head

INTERFACE = "polygraft"
ATTEND = "_polygraft_attend"  # attribute of each attention module: the runner's function

# Arguments that models pass and that change nothing here. Anything else that is set is refused.
_BENIGN = frozenset({"position_ids", "use_cache", "output_router_logits", "dropout"})

_PROBE_TOKENS = 3  # rows of the probe; no model has a dimension of 3 that could hide it

AttendFn = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What one attention layer needs from the cache."""

    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True)
class ProbedModel:
    """Layers in order, their attention modules, and the linear sites found by running."""

    layers: tuple[LayerFacts, ...]
    attention_modules: tuple[nn.Module, ...]
    site_groups: tuple[tuple[str, ...], ...]  # module names that share one input, in call order

    @property
    def kv_shapes(self) -> tuple[KVShape, ...]:
        """What ready-made keys and values must look like, layer by layer."""
        return tuple(KVShape(f.kv_heads, f.head_dim, f.value_dim) for f in self.layers)


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Entered by transformers for every layer. query: [1, H, T, D]; key, value: [1, Hkv, T, D];
    s_aux: [H], gpt-oss's name for attention sinks."""
    unknown = sorted(
        name
        for name, value in extra.items()
        if name not in _BENIGN and value is not None and value is not False
    )
    if unknown:
        raise ModelRefused(
            f"attention of {type(module).__name__} uses {', '.join(unknown)}, which this engine "
            "does not compute.",
            item="attention",
            found=", ".join(unknown),
            hint="Serve a model without it.",
        )
    attend: AttendFn = module.__dict__[ATTEND]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(module, query[0], key[0], value[0], scale, sliding_window, softcap, s_aux)
    return out[None], None  # [1, T, H, D_v]


AttentionInterface.register(INTERFACE, _interface)


def install_attention(modules: list[nn.Module] | tuple[nn.Module, ...], attend: AttendFn) -> None:
    """Let these modules call `attend(module, q, k, v, scaling, window, softcap, sinks)`."""
    for module in modules:
        module.__dict__[ATTEND] = attend


def probe_model(base: LoadedBase) -> ProbedModel:
    """Run a few tokens and record layers and linear sites. Raises ModelRefused.

    Leaves the model on the engine's attention interface.
    """
    model = base.model
    # Modules are discovered by their calls, so every module gets the recorder first.
    facts: list[tuple[int, nn.Module, LayerFacts]] = []

    def record(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float, *_: Any
    ) -> Tensor:
        layer = LayerFacts(k.shape[0], k.shape[2], v.shape[2])
        facts.append((getattr(module, "layer_idx", -1), module, layer))
        groups = q.shape[0] // k.shape[0]
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0), scale=scaling
        )
        return out.transpose(0, 1)

    everything = list(model.modules())
    install_attention(everything, record)
    try:
        model.set_attn_implementation(INTERFACE)
        calls = _record_linear_calls(base)
    finally:
        for module in everything:
            module.__dict__.pop(ATTEND, None)
    _require_all_layers(base, [index for index, _, _ in facts])
    return ProbedModel(
        layers=tuple(layer for _, _, layer in facts),
        attention_modules=tuple(module for _, module, _ in facts),
        site_groups=_group_sites(base.model, calls),
    )


def _require_all_layers(base: LoadedBase, called: list[int]) -> None:
    expected = list(range(base.config.num_hidden_layers))
    if called != expected:
        raise ModelRefused(
            f"{type(base.model).__name__} does not route its attention through transformers' "
            f"AttentionInterface ({len(set(called))} of {len(expected)} layers do), so batched "
            "requests would be computed wrongly.",
            item="architecture",
            found=type(base.model).__name__,
            allowed="models whose every layer uses the AttentionInterface",
            hint="llama, qwen, mistral, gemma, phi, gpt2 and most decoder-only models work.",
        )


@torch.inference_mode()
def _record_linear_calls(base: LoadedBase) -> list[tuple[str, Tensor]]:
    """(module name, input) of every linear call, in order. The tensors are kept alive on purpose:
    a freed one could give its id to the next input."""
    head = output_head(base.model)
    calls: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in base.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:

            def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                calls.append((name, args[0]))

            hooks.append(module.register_forward_pre_hook(hook))
    try:
        embedding = base.model.get_input_embeddings()
        base.model(
            inputs_embeds=embedding(torch.zeros(1, _PROBE_TOKENS, dtype=torch.int64)),
            position_ids=torch.arange(_PROBE_TOKENS)[None],
            use_cache=False,
            logits_to_keep=torch.tensor([_PROBE_TOKENS - 1]),
        )
    except TypeError as error:
        raise ModelRefused(
            f"{type(base.model).__name__} does not take inputs_embeds, position_ids and "
            f"logits_to_keep: {error}.",
            item="architecture",
            found=type(base.model).__name__,
            hint="Serve a decoder-only model of the current transformers interface.",
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def _group_sites(model: nn.Module, calls: list[tuple[str, Tensor]]) -> tuple[tuple[str, ...], ...]:
    names = [name for name, _ in calls]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ModelRefused(
            "a linear layer runs more than once in a forward pass, which adapters on it cannot "
            "express.",
            item=repeated[0],
        )
    groups: dict[tuple[int, str, type[nn.Module], bool], list[str]] = defaultdict(list)
    for name, x in calls:
        if x.shape[:-1].numel() != _PROBE_TOKENS:
            raise ModelRefused(
                "a linear layer does not see one row per token, so adapters cannot be applied "
                "to it by request.",
                item=name,
                found=str(tuple(x.shape)),
            )
        module = model.get_submodule(name)
        parent = name.rpartition(".")[0]
        has_bias = getattr(module, "bias", None) is not None
        groups[id(x), parent, type(module), has_bias].append(name)
    return tuple(tuple(group) for group in groups.values())
