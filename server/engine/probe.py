"""The probe: a few tokens through the model, to learn what its layers really do.

A model that ignores the attention interface is only *warned* about by transformers and then gives
wrong tokens without an error (falcon, bloom); here it is refused. What the probe records per layer
(heads, widths) sizes the KV cache; config names are never trusted for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from polygraft.adapters.base_model import refused_if_it_fails
from polygraft.adapters.errors import ModelRefused
from polygraft.adapters.geometry import KVShape
from polygraft.server.engine.base import LoadedBase, output_head
from polygraft.server.engine.interface import (
    PROBING,
    SERVING,
    install_attention,
    remove_attention,
)
from polygraft.server.engine.masks import require_causal

# Rows of the probe. A prime, so that no other dimension looks like it, and enough different tokens
# that no expert of a mixture gets all of them by chance.
_PROBE_TOKENS = 29


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What one attention layer computes, and needs from the cache."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    window: int | None  # positions that a query sees, its own included; None: all
    softcap: float | None
    has_sinks: bool


@dataclass(frozen=True)
class ProbedModel:
    """Layers in order, their attention modules, and the linear sites found by running."""

    layers: tuple[LayerFacts, ...]
    attention_modules: tuple[nn.Module, ...]
    site_groups: tuple[tuple[str, ...], ...]  # module names that share one input, in call order
    norms: frozenset[str] = frozenset()  # those that every token passes once, as a whole row

    @property
    def kv_shapes(self) -> tuple[KVShape, ...]:
        """What ready-made keys and values must look like, layer by layer."""
        return tuple(KVShape(f.kv_heads, f.head_dim, f.value_dim) for f in self.layers)


@dataclass(frozen=True, slots=True)
class _LayerCall:
    index: int
    module: nn.Module
    facts: LayerFacts
    mask: Tensor | None


def probe_model(base: LoadedBase) -> ProbedModel:
    """Run a few tokens and record layers and linear sites. Raises ModelRefused.

    Leaves the model on the engine's attention interface.
    """
    model = base.model
    layers: list[_LayerCall] = []

    def record(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float, *rest: Any
    ) -> Tensor:
        window, softcap, sinks, mask = rest
        facts = LayerFacts(
            heads=q.shape[0],
            kv_heads=k.shape[0],
            head_dim=k.shape[2],
            value_dim=v.shape[2],
            scaling=scaling,
            window=window,
            softcap=softcap,
            has_sinks=sinks is not None,
        )
        layers.append(_LayerCall(getattr(module, "layer_idx", -1), module, facts, mask))
        groups = q.shape[0] // k.shape[0]
        keys, values = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        out = F.scaled_dot_product_attention(q, keys, values, scale=scaling)
        return out.transpose(0, 1).contiguous()

    # Attention modules are discovered by their calls, so every module gets the recorder first.
    everything = list(model.modules())
    install_attention(everything, record)
    try:
        model.set_attn_implementation(PROBING)
        with refused_if_it_fails("the probe"):
            calls, norms = _record_calls(base)
    finally:
        remove_attention(everything)
        model.set_attn_implementation(SERVING)
    _require_all_layers(base, [layer.index for layer in layers])
    _require_causal(layers, base.context_length)
    return ProbedModel(
        layers=tuple(layer.facts for layer in layers),
        attention_modules=tuple(layer.module for layer in layers),
        site_groups=_group_sites(base.model, calls),
        norms=norms,
    )


def _require_causal(layers: list[_LayerCall], context_length: int) -> None:
    """Each mask once: layers of one kind share it, and a long context takes a while."""
    different = {(id(layer.mask), layer.facts.window): layer for layer in reversed(layers)}
    for layer in reversed(different.values()):
        with refused_if_it_fails("asking for its attention mask"):
            require_causal(
                layer.mask,
                window=layer.facts.window,
                context_length=context_length,
                layer=layer.index,
            )


def _require_all_layers(base: LoadedBase, called: list[int]) -> None:
    expected = list(range(base.config.num_hidden_layers))
    if called != expected:
        raise ModelRefused(
            f"{type(base.model).__name__} does not route its attention through transformers' "
            f"AttentionInterface ({len(called)} calls by {len(set(called))} of "
            f"{len(expected)} layers), so batched requests would be computed wrongly.",
            item="architecture",
            found=type(base.model).__name__,
            allowed="models whose every layer uses the AttentionInterface once",
            hint="llama, qwen, mistral, gemma, phi, gpt2 and most decoder-only models work.",
        )


@torch.inference_mode()
def _record_calls(base: LoadedBase) -> tuple[list[tuple[str, Tensor]], frozenset[str]]:
    """(module name, input) of every linear call, in order; and the norms that are called once with
    a row for every token. The tensors are kept alive on purpose: a freed one could give its id to
    the next input."""
    head = output_head(base.model)
    calls: list[tuple[str, Tensor]] = []
    norms: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in base.model.named_modules():
        is_linear = _is_plain_linear(module) and module is not head
        if is_linear or name in base.geometry.norms:
            found = calls if is_linear else norms

            def hook(
                _: nn.Module,
                args: tuple[Any, ...],
                name: str = name,
                found: list[tuple[str, Tensor]] = found,
            ) -> None:
                found.append((name, args[0]))

            hooks.append(module.register_forward_pre_hook(hook))
    try:
        embedding = base.model.get_input_embeddings()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(base.geometry.vocab_size, (1, _PROBE_TOKENS), generator=generator)
        rows = embedding(ids.to(base.device))
        rows[:, 0] = rows.mean(1)  # a row of no token, like those of soft prompts
        base.model(
            inputs_embeds=rows,
            position_ids=torch.arange(_PROBE_TOKENS, device=base.device)[None],
            use_cache=False,
            logits_to_keep=torch.tensor([_PROBE_TOKENS - 1], device=base.device),
        )
    finally:
        for handle in hooks:
            handle.remove()
    times = Counter(name for name, _ in norms)
    by_token = (n for n, x in norms if x.shape[:-1].numel() == _PROBE_TOKENS and times[n] == 1)
    return calls, frozenset(by_token)


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether it computes y = W x + b. Subclasses may do otherwise (routers, quantized layers)."""
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _group_sites(model: nn.Module, calls: list[tuple[str, Tensor]]) -> tuple[tuple[str, ...], ...]:
    """Linear modules that adapters can be applied to by request: those that every token passes
    once. Others (experts, layers that run twice) stay as they are."""
    count = Counter(name for name, _ in calls)
    groups: dict[tuple[int, str, type[nn.Module], bool], list[str]] = defaultdict(list)
    for name, x in calls:
        if count[name] > 1 or x.shape[:-1].numel() != _PROBE_TOKENS:
            continue
        module = model.get_submodule(name)
        parent = name.rpartition(".")[0]
        has_bias = getattr(module, "bias", None) is not None
        groups[id(x), parent, type(module), has_bias].append(name)
    return tuple(tuple(group) for group in groups.values())
