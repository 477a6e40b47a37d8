"""How a step is computed: the transformers model over our cache, sites and attention.

The only place that touches the model. No policy: it runs the batch that it is given.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from polygraft.adapters.errors import ModelRefused
from polygraft.adapters.geometry import embedding_scale
from polygraft.kernels.attention import AttentionPlan, PagedAttention
from polygraft.kernels.linear import WeightFormat, make_linear
from polygraft.kernels.native.attention import NativeAttention, NativeAttentionPlan
from polygraft.kernels.native.library import TYPES, native_kernels
from polygraft.server.engine.base import LoadedBase, output_head
from polygraft.server.engine.batch import ForwardBatch, StepSlot
from polygraft.server.engine.changed_rows import changes_applied, embed_, norm_rows
from polygraft.server.engine.fused_layer import fuse_layers
from polygraft.server.engine.interface import install_attention
from polygraft.server.engine.kv_cache import KVCache
from polygraft.server.engine.memory import release_checkpoint
from polygraft.server.engine.probe import ProbedModel
from polygraft.server.engine.sites import build_sites

logger = logging.getLogger(__name__)


class OutputHead(nn.Module):
    """The output head in the serving format; stands in for the model's own linear head."""

    def __init__(self, head: nn.Linear, embedding: nn.Module, weight_format: WeightFormat) -> None:
        super().__init__()
        is_tied = head.weight is embedding.weight
        # Else a stand-in of one element: the weight is kept in the serving format only.
        self.weight = head.weight if is_tied else head.weight.new_zeros(1).expand(head.weight.shape)
        self.bias = head.bias
        self.linear = make_linear(head.weight.detach(), head.bias, weight_format)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [1, num_logits, hidden_size] -> [1, num_logits, vocab_size]."""
        return self.linear(hidden)


class ModelRunner:
    """Runs batches. Owns the patched model and the KV cache; engine thread only."""

    def __init__(
        self,
        base: LoadedBase,
        probed: ProbedModel,
        cache: KVCache,
        *,
        weight_format: WeightFormat,
        native: bool,
    ) -> None:
        """native: use the C++ kernels where this machine can compile them."""
        self.base = base
        self.cache = cache
        self._slot = StepSlot()
        self._layer_of = {id(module): i for i, module in enumerate(probed.attention_modules)}
        self._attention = PagedAttention()
        self._native_attention: dict[int, NativeAttention] = {}  # by layer, made when first used
        self.native_group = _native_group(base, probed) if native else None
        self._embedding = base.model.get_input_embeddings()
        if weight_format == "int8":
            _require_int8(base.dtype, native=self.native_group is not None)
        self._embedding_scale = embedding_scale(self._embedding)
        self._norms = {name: base.model.get_submodule(name) for name in probed.norms}
        self.sites = build_sites(base.model, probed.site_groups, self._slot, weight_format)
        install_attention(probed.attention_modules, self._attend)
        head = output_head(base.model)
        if weight_format != "plain" and type(head) is nn.Linear:
            replacement = OutputHead(head, self._embedding, weight_format)
            base.model.set_output_embeddings(replacement)  # type: ignore[no-untyped-call]
        release_checkpoint(base.model)
        self.num_fused_layers = 0
        if self.native_group is not None:
            self.num_fused_layers = fuse_layers(base.model, probed, cache)
        self._head = output_head(base.model)
        logger.info(
            "CPU kernels: %s; %d of %d layers fused",
            "torch" if self.native_group is None else "native",
            self.num_fused_layers,
            len(probed.layers),
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """A CPU has one way to compute a step."""
        return {}

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> Tensor:
        """Logits [num_logits, vocab_size] in float32 of the rows in `batch.logit_rows`."""
        rows = self._embedding(batch.token_ids)  # [num_tokens, hidden_size]
        if batch.changed:
            embed_(rows, batch.token_ids, batch.changed, self._embedding_scale)
        for virtual in batch.virtual:
            prompt = virtual.prompt[virtual.offset : virtual.offset + virtual.count]
            rows[virtual.start : virtual.start + virtual.count] = prompt
        slot = self._slot
        slot.slot_mapping, slot.attention, slot.lora = (
            batch.slot_mapping,
            batch.attention,
            batch.lora,
        )
        try:
            output = self._call(rows, batch)
        finally:
            slot.slot_mapping, slot.attention, slot.lora, slot.norms = None, None, [], {}
        logits: Tensor = output.logits[0]
        return logits.float()

    def _call(self, rows: Tensor, batch: ForwardBatch) -> Any:
        """transformers' model on the rows of the step."""
        arguments = {
            "inputs_embeds": rows[None],
            "position_ids": batch.positions[None],
            "use_cache": False,
            "logits_to_keep": batch.logit_rows,
        }
        if not batch.changed:
            return self.base.model(**arguments)
        self._slot.norms = norm_rows(batch.changed)
        with changes_applied(self._head, self._norms, batch.changed, self._slot.norms):
            return self.base.model(**arguments)

    def _attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """One layer. q: [H, T, D]; k, v: [Hkv, T, D] after position encoding -> [T, H, D_v]."""
        layer = self._layer_of[id(module)]
        plan, cells = self._slot.attention, self._slot.slot_mapping
        assert plan is not None, "attention was called outside a step"
        assert cells is not None
        self.cache.write(layer, cells, k, v)
        if isinstance(plan, NativeAttentionPlan):
            if layer not in self._native_attention:
                self._native_attention[layer] = NativeAttention(
                    self.cache.keys[layer],
                    self.cache.values[layer],
                    heads=q.shape[0],
                    scaling=scaling,
                    window=window,
                    softcap=softcap,
                    sinks=None if sinks is None else sinks.detach().float().contiguous(),
                )
            rows = q.transpose(0, 1).flatten(1).contiguous()
            return self._native_attention[layer](plan, rows).view(q.shape[1], q.shape[0], -1)
        assert isinstance(plan, AttentionPlan)
        return self._attention(
            plan,
            q.transpose(0, 1),
            self.cache.keys[layer],
            self.cache.values[layer],
            scaling=scaling,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )


def _require_int8(dtype: torch.dtype, *, native: bool) -> None:
    if not native:
        raise ModelRefused(
            f"8-bit weights need the native kernels, which do not run here for {dtype}.",
            item="weight_format",
            found="int8",
            hint="Install a C++ compiler and serve in bfloat16 or float32, or use packed weights.",
        )


def _native_group(base: LoadedBase, probed: ProbedModel) -> int | None:
    """Query heads per key head (the most of any layer), if the native kernels can run this base."""
    if base.dtype not in TYPES:
        logger.warning("the native kernels do not compute %s; torch's are used", base.dtype)
        return None
    if native_kernels() is None:
        return None
    return max(layer.heads // layer.kv_heads for layer in probed.layers)
