"""A decoder layer in eleven calls: four matrix products and the native kernels between them.

transformers' layer of the same family makes about a hundred small tensor operations per step, each
of which costs more to start than to compute. Only layers whose code is known to be the pre-norm
block below are replaced; `selfcheck` compares the whole model with transformers' own afterwards.

    x += o(attention(rotate(qkv(norm(x)))))        x += down(silu(gate(norm(x))) * up(norm(x)))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from polygraft.kernels.native.attention import NativeAttention, NativeAttentionPlan
from polygraft.kernels.native.rows import HeadRotation, add_rms_norm, rms_norm, silu_mul
from polygraft.server.engine.batch import StepSlot
from polygraft.server.engine.kv_cache import KVCache
from polygraft.server.engine.probe import LayerFacts, ProbedModel
from polygraft.server.engine.sites import Member, Site

# Classes whose forward is the block above, checked against transformers 5.23 by
# tests/server/engine/test_fused_layer.py. Attention may differ in biases, windows and head norms.
FAMILIES = frozenset(
    f"{family}DecoderLayer"
    for family in ("Llama", "Mistral", "Ministral", "Qwen2", "Qwen3", "SeedOss")
)


class FusedLayer(nn.Module):
    """Stands in for one decoder layer of `FAMILIES`."""

    def __init__(
        self,
        layer: nn.Module,
        facts: LayerFacts,
        keys: Tensor,
        values: Tensor,
        names: Mapping[int, str],
    ) -> None:
        """names: those of the model's modules, by id."""
        super().__init__()
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._slot: StepSlot = attention.q_proj.slot
        self._qkv: Site = attention.q_proj.site
        self._o: Site = attention.o_proj.site
        self._gate_up: Site = mlp.gate_proj.site
        self._down: Site = mlp.down_proj.site
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._norms = [_norm(norm) for norm in norms]
        self._norm_names = [names[id(norm)] for norm in norms]
        q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self._rotation = HeadRotation(
            keys,
            values,
            heads=facts.heads,
            q_norm=_norm(q_norm)[0] if q_norm is not None else None,
            k_norm=_norm(k_norm)[0] if k_norm is not None else None,
            eps=_norm(q_norm)[1] if q_norm is not None else 0.0,
        )
        self._attention = NativeAttention(
            keys, values, heads=facts.heads, scaling=facts.scaling, window=facts.window
        )

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """hidden_states: [1, num_tokens, hidden_size], changed in place and returned."""
        slot, x = self._slot, hidden_states[0]
        plan, cells = slot.attention, slot.slot_mapping
        assert isinstance(plan, NativeAttentionPlan), "a fused layer was called outside a step"
        assert cells is not None
        (first, first_eps), (second, second_eps) = self._norms
        cosine, sine = position_embeddings
        normed = rms_norm(x, first, first_eps)
        if slot.norms:
            self._renorm(0, x, normed)
        qkv = self._qkv.run(normed, slot)
        self._rotation(qkv, cosine[0], sine[0], cells)
        attended = self._o.run(self._attention(plan, qkv), slot)
        normed = add_rms_norm(x, attended, second, second_eps)
        if slot.norms:
            self._renorm(1, x, normed)
        gate_up = self._gate_up.run(normed, slot)
        x += self._down.run(silu_mul(gate_up), slot)
        return hidden_states

    def _renorm(self, which: int, x: Tensor, normed: Tensor) -> None:
        """Rows whose adapter has a weight of its own for this norm, once more with it."""
        eps = self._norms[which][1]
        for start, end, parameters in self._slot.norms.get(self._norm_names[which], ()):
            normed[start:end] = rms_norm(x[start:end], parameters["weight"], eps)


def fuse_layers(model: nn.Module, probed: ProbedModel, cache: KVCache) -> int:
    """Replace every layer that can be; returns how many were."""
    parents = {
        id(child): (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
    }
    names = {id(module): name for name, module in model.named_modules()}
    fused = 0
    for index, attention in enumerate(probed.attention_modules):
        layer, _ = parents[id(attention)]
        if not _is_known(layer, probed.layers[index]):
            continue
        container, name = parents[id(layer)]
        keys, values = cache.keys[index], cache.values[index]
        facts = probed.layers[index]
        container._modules[name] = FusedLayer(layer, facts, keys, values, names)
        fused += 1
    return fused


def _is_known(layer: nn.Module, facts: LayerFacts) -> bool:
    if type(layer).__name__ not in FAMILIES or facts.softcap is not None or facts.has_sinks:
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    return (
        _is_site(attention.q_proj, attention.k_proj, attention.v_proj)
        and _is_site(attention.o_proj)
        and _is_site(mlp.gate_proj, mlp.up_proj)
        and _is_site(mlp.down_proj)
        and isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation))
        and facts.head_dim == facts.value_dim
    )


def _is_site(*modules: nn.Module) -> bool:
    """Whether these are all the members of one site, in its order."""
    members = [module for module in modules if isinstance(module, Member)]
    if len(members) != len(modules) or len(members[0].site.names) != len(members):
        return False
    lows = [member.low for member in members]
    return lows == sorted(lows) and all(m.site is members[0].site for m in members)


def _norm(module: Any) -> tuple[Tensor, float]:
    """Weight and epsilon of an RMSNorm."""
    return module.weight.detach(), float(module.variance_epsilon)
