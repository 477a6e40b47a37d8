"""How a step is computed on a device: transformers' model over static tables and our kernels.

Small steps (decodes, guessed tokens, short chunks) are padded to a bucket of rows and replayed;
others, and those whose adapters change more than low-rank updates do, are launched as they come.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polygraft.adapters.geometry import embedding_scale
from polygraft.server.engine.base import LoadedBase, output_head
from polygraft.server.engine.batch import ForwardBatch
from polygraft.server.engine.changed_rows import changes_applied, embed_, norm_rows
from polygraft.server.engine.device.builder import DeviceBatch, DeviceBatchBuilder
from polygraft.server.engine.device.graphs import ReplayedStep, StepOutputs, capture
from polygraft.server.engine.device.kernels import DeviceKernels
from polygraft.server.engine.device.logits import DeviceLogits
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.device.sampling import choose
from polygraft.server.engine.device.shapes import (
    COLUMN_CLASSES,
    WIDE,
    AttentionTiles,
    LinearTiles,
    StepSizes,
)
from polygraft.server.engine.device.site import DeviceSite, DeviceSlot
from polygraft.server.engine.device.tables import StepTables
from polygraft.server.engine.interface import install_attention
from polygraft.server.engine.kv_cache import KVCache
from polygraft.server.engine.probe import ProbedModel
from polygraft.server.engine.sites import Site

logger = logging.getLogger(__name__)


class DeviceRunner:
    """Runs batches of a `DeviceBatchBuilder`. Owns the patched model and the KV cache; engine
    thread only."""

    def __init__(
        self,
        base: LoadedBase,
        probed: ProbedModel,
        cache: KVCache,
        path: DevicePath,
        *,
        slot: DeviceSlot,
        sites: list[DeviceSite],
        tables: StepTables,
        kernels: DeviceKernels,
        sizes: StepSizes,
        linears: LinearTiles,
        attention: AttentionTiles,
    ) -> None:
        self.base = base
        self.cache = cache
        self.sites: list[Site] = list(sites)
        self._path = path
        self._slot = slot
        self._tables = tables
        self._kernels = kernels
        self._sizes = sizes
        self._linears = linears
        self._attention = attention
        self._embedding = base.model.get_input_embeddings()
        self._embedding_scale = embedding_scale(self._embedding)
        self._norms = {name: base.model.get_submodule(name) for name in probed.norms}
        self._head = output_head(base.model)
        self._layer_of = {id(module): i for i, module in enumerate(probed.attention_modules)}
        install_attention(probed.attention_modules, self._attend)
        width = base.geometry.hidden_size
        self._rows = torch.zeros(sizes.rows, width, dtype=base.dtype, device=path.device)
        self._graphs: dict[tuple[int, int], ReplayedStep] = {}  # by rows and class of columns
        self._counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("steps", "linear", "attention", "sampling")
        }

    @torch.inference_mode()
    def warm_up(self, builder: DeviceBatchBuilder) -> None:
        """Run a step of every number of rows that its kernels are compiled for, so that none is
        compiled for a request."""
        rows = 1
        while rows <= self._sizes.rows:
            batch = builder.padding(rows)
            self._embed(batch)
            for columns in (*COLUMN_CLASSES, WIDE):
                self._launched_step(replace(batch, columns=columns))
            rows *= 2

    @torch.inference_mode()
    def capture_steps(self, builder: DeviceBatchBuilder) -> None:
        """Capture every bucket, with and without low-rank updates; the largest first, so that the
        others fit into its memory."""
        pool = torch.cuda.graph_pool_handle() if self._path.is_cuda else None
        for bucket in reversed(self._sizes.graph_rows):
            builder.fill_padding(bucket)
            for columns in COLUMN_CLASSES:
                run = partial(self._padded_step, bucket, columns)
                step = capture(run, self._path.device, pool)
                if step is None:
                    self._graphs = {}
                    return
                self._graphs[bucket, columns] = step

    def counts(self) -> dict[str, dict[str, int]]:
        """How often a step was replayed or launched, which kernels ran in it, and where tokens were
        chosen."""
        return {name: dict(counter) for name, counter in self._counts.items()}

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> DeviceLogits:
        """See StepRunner."""
        with self._path.current():
            return self._run(batch)

    def _run(self, batch: ForwardBatch) -> DeviceLogits:
        assert isinstance(batch, DeviceBatch)
        self._embed(batch)
        self._count(batch)
        if batch.bucket is None:
            found = self._launched_step(batch)
        else:
            step = self._graphs.get((batch.bucket, batch.columns))
            run = partial(self._padded_step, batch.bucket, batch.columns)
            found = _picked(step.replay() if step else run(), batch)
        tokens = choose(found.logits, found.greedy, batch.sampling)
        return DeviceLogits(found.logits, tokens, found.finite, batch.sampling.host)

    def _embed(self, batch: DeviceBatch) -> None:
        """Fill the static rows that the model starts from, padding too."""
        rows = self._rows[: len(batch.token_ids)]
        rows.copy_(self._embedding(batch.token_ids))
        if batch.changed:
            embed_(rows, batch.token_ids, batch.changed, self._embedding_scale)
        for virtual in batch.virtual:
            prompt = virtual.prompt[virtual.offset : virtual.offset + virtual.count]
            rows[virtual.start : virtual.start + virtual.count] = prompt

    def _padded_step(self, bucket: int, columns: int) -> StepOutputs:
        """All rows of a bucket, from addresses that never change."""
        slot, tables = self._slot, self._tables
        slot.attention, slot.slot_mapping = tables.paged(is_decode=True), tables.cells[:bucket]
        slot.is_decode, slot.num_tiles = True, bucket
        self._begin_linears(bucket, columns)
        try:
            return _outputs(self._call(self._rows[:bucket], tables.positions[:bucket], 0))
        finally:
            slot.clear()

    def _launched_step(self, batch: DeviceBatch) -> StepOutputs:
        slot = self._slot
        slot.attention, slot.slot_mapping = batch.attention, batch.slot_mapping
        slot.is_decode, slot.num_tiles = False, batch.num_tiles
        self._begin_linears(batch.num_tokens, batch.columns)
        slot.lora = batch.lora
        try:
            rows = self._rows[: batch.num_tokens]
            if not batch.changed:
                return _outputs(self._call(rows, batch.positions, batch.logit_rows))
            slot.norms = norm_rows(batch.changed)
            with changes_applied(self._head, self._norms, batch.changed, slot.norms):
                return _outputs(self._call(rows, batch.positions, batch.logit_rows))
        finally:
            slot.clear()

    def _begin_linears(self, rows: int, columns: int) -> None:
        self._slot.columns = columns
        if columns:
            self._slot.linear_tiles = self._linears.of(rows, columns)
            self._kernels.begin_step()

    def _call(self, rows: Tensor, positions: Tensor, logit_rows: Tensor | int) -> Tensor:
        """Logits of `logit_rows`, of all rows if that is 0, in the model's dtype."""
        output = self.base.model(
            inputs_embeds=rows[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=logit_rows,
        )
        logits: Tensor = output.logits[0]
        return logits

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
        """One layer; see `ModelRunner`. q: [H, T, D]; k, v: [Hkv, T, D] -> [T, H, D_v]."""
        layer, slot = self._layer_of[id(module)], self._slot
        plan, cells = slot.attention, slot.slot_mapping
        assert cells is not None, "attention was called outside a step"
        self.cache.write(layer, cells, k, v)
        tiles = self._attention.decode if slot.is_decode else self._attention.prefill
        rule: dict[str, Any] = {
            "scaling": scaling,
            "window": window,
            "softcap": softcap,
            "sinks": sinks,
        }
        return self._kernels.attention(
            q.transpose(0, 1),
            self.cache.keys[layer],
            self.cache.values[layer],
            plan,  # type: ignore[arg-type]
            num_tiles=slot.num_tiles,
            config=tiles[layer],
            rule=rule,
        )

    def _count(self, batch: DeviceBatch) -> None:
        is_replayed = (batch.bucket, batch.columns) in self._graphs
        self._counts["steps"]["graph" if is_replayed else "eager"] += 1
        self._counts["linear"].update(self._variants(batch))
        self._counts["linear"]["general"] += bool(batch.changed)
        self._counts["attention"]["split" if batch.bucket is not None else "tiled"] += 1
        self._counts["sampling"].update(batch.sampling.why)

    def _variants(self, batch: DeviceBatch) -> set[str]:
        if not batch.columns:
            return {"base"}
        tiles = self._linears.of(batch.bucket or batch.num_tokens, batch.columns)
        return {config.variant for config in tiles}


def _outputs(logits: Tensor) -> StepOutputs:
    logits = logits.float()
    # A sum is finite iff every term is, short of overflow, which is as bad.
    return StepOutputs(logits, logits.argmax(-1), logits.sum(-1).isfinite())


def _picked(found: StepOutputs, batch: DeviceBatch) -> StepOutputs:
    """Of the rows that tokens are wanted of."""
    count = len(batch.logit_rows)
    if batch.are_all_sampled:
        return StepOutputs(*(tensor[:count] for tensor in found))
    return StepOutputs(*(tensor.index_select(0, batch.logit_rows) for tensor in found))
