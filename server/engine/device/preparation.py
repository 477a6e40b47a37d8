"""From a probed base on a device to whoever computes its steps there."""

from __future__ import annotations

import logging
from functools import partial

import torch

from polygraft.adapters.errors import InvalidRequest
from polygraft.kernels.fused.dispatch import Dispatcher
from polygraft.server.engine.base import LoadedBase
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.device.bank import DeviceAdapterBank
from polygraft.server.engine.device.budget import DeviceBudget, DeviceNeeds, divide
from polygraft.server.engine.device.builder import DeviceBatchBuilder
from polygraft.server.engine.device.kernels import make_kernels
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.device.runner import DeviceRunner
from polygraft.server.engine.device.shapes import AttentionTiles, LinearTiles, StepSizes
from polygraft.server.engine.device.site import DeviceSite, DeviceSlot, SiteWork
from polygraft.server.engine.device.tables import StepTables
from polygraft.server.engine.kv_cache import KVCache, bytes_per_cell
from polygraft.server.engine.probe import ProbedModel
from polygraft.server.engine.sites import build_sites
from polygraft.server.engine.sizing import DEFAULT_KV_BYTES, DEFAULT_POOL_ROWS, num_cells
from polygraft.server.engine.step_parts import StepParts

logger = logging.getLogger(__name__)

MAX_SLICES = 3  # projections that the fused kernel computes in one launch

_WORKING_ROWS = 12  # rows of the widest layer that are alive at once for a token, generously
_LOGIT_BYTES = 4 + 4 + 2  # of a logit: the model's, float32, and one copy


def place_on_device(loaded: LoadedBase, config: EngineConfig, path: DevicePath) -> None:
    """Move the weights, before anything is computed with them. Raises InvalidRequest."""
    if config.weight_format == "int8":
        raise InvalidRequest(
            "8-bit weights are computed by the CPU's kernels only.",
            item="engine.weight_format",
            found="int8",
            allowed="packed or plain, which are one on a GPU",
        )
    if path.is_cuda:
        torch.cuda.set_device(path.device)  # of this thread; Triton asks for it
    loaded.model.to(path.device)  # type: ignore[arg-type]


def prepare_device(
    loaded: LoadedBase, probed: ProbedModel, config: EngineConfig, path: DevicePath
) -> StepParts:
    """Everything that a step needs, of the size that fits. Raises InvalidRequest if none does."""
    slot, work = DeviceSlot(), SiteWork()
    groups = [
        group[i : i + MAX_SLICES]
        for group in probed.site_groups
        for i in range(0, len(group), MAX_SLICES)
    ]
    sites = build_sites(loaded.model, groups, slot, "plain", partial(DeviceSite, work=work))
    device_sites = [site for site in sites if isinstance(site, DeviceSite)]
    budget = _budget(loaded, probed, config, path, device_sites)
    config = config.model_copy(update={"kv_bytes": budget.kv_bytes, "pool_rows": budget.pool_rows})
    cells = num_cells(config, loaded, probed)
    context = min(loaded.context_length, cells)
    cache = KVCache(
        probed.layers, cells, dtype=loaded.dtype, device=path.device, spare_cells=config.block_size
    )
    bank = DeviceAdapterBank(
        sites,
        pool_rows=budget.pool_rows,
        virtual_token_rows=config.virtual_token_rows,
        hidden_size=loaded.geometry.hidden_size,
        dtype=loaded.dtype,
        device=path.device,
    )
    sizes = StepSizes.of(config, context=context, pool_rows=budget.pool_rows)
    dispatcher = Dispatcher.for_device(path.device) if path.is_cuda else Dispatcher(path.target)
    linears = LinearTiles([site.shape for site in sites], dispatcher, path.target)
    attention = AttentionTiles.of(probed, context)
    split = zip(attention.decode, attention.layers, strict=True)
    kernels = make_kernels(
        path,
        linears.launches(sizes),
        [(sizes.graph_rows[-1], tiles, layer) for tiles, layer in split],
        len(sites),
    )
    tables = StepTables(sizes, attention, spare_cell=cells, device=path.device)
    work.tables, work.kernels, work.pools = tables, kernels, bank.pools
    runner = DeviceRunner(
        loaded,
        probed,
        cache,
        path,
        slot=slot,
        sites=device_sites,
        tables=tables,
        kernels=kernels,
        sizes=sizes,
        linears=linears,
        attention=attention,
    )
    builder = DeviceBatchBuilder(
        bank,
        tables,
        sizes,
        linears,
        device_sites,
        vocab_size=loaded.geometry.vocab_size,
        path=path,
    )
    if path.is_cuda:
        runner.warm_up(builder)
    if config.cuda_graphs:
        runner.capture_steps(builder)
    logger.info(
        "%s, %s kernels: %d rank rows, %d KV blocks of %d tokens",
        path.device,
        path.kernels,
        budget.pool_rows,
        cells // config.block_size,
        config.block_size,
    )
    return StepParts(runner, bank, builder)


def _budget(
    loaded: LoadedBase,
    probed: ProbedModel,
    config: EngineConfig,
    path: DevicePath,
    sites: list[DeviceSite],
) -> DeviceBudget:
    if not path.is_cuda:
        return DeviceBudget(
            config.pool_rows or DEFAULT_POOL_ROWS, config.kv_bytes or DEFAULT_KV_BYTES
        )
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(path.device)
    return divide(
        _needs(loaded, probed, config, sites),
        total_bytes=total,
        free_bytes=free,
        memory_part=config.device_memory,
        adapter_part=config.device_adapters,
        pool_rows=config.pool_rows,
        kv_bytes=config.kv_bytes,
    )


def _needs(
    loaded: LoadedBase, probed: ProbedModel, config: EngineConfig, sites: list[DeviceSite]
) -> DeviceNeeds:
    size, geometry = loaded.dtype.itemsize, loaded.geometry
    shapes = [site.shape for site in sites]
    widest = max(max(shape.in_features, shape.out_features) for shape in shapes)
    step = config.step_tokens * widest * size * _WORKING_ROWS
    logits = max(config.max_running, config.step_tokens) * geometry.vocab_size * _LOGIT_BYTES
    beside = config.virtual_token_rows * geometry.hidden_size * size
    return DeviceNeeds(
        row_bytes=sum(
            (len(s.slices) * s.in_features + s.out_features) * size + 4 * len(s.slices)
            for s in shapes
        ),
        block_bytes=bytes_per_cell(probed.layers, loaded.dtype) * config.block_size,
        working_bytes=step + logits + beside,
    )
