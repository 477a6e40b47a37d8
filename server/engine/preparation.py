"""From a name to a base that is proven, patched and ready to run steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.base import LoadedBase, load_base
from polygraft.server.engine.batch_builder import BatchBuilder
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.device.path import DevicePath, cuda_path
from polygraft.server.engine.device.preparation import place_on_device, prepare_device
from polygraft.server.engine.kv_cache import KVCache
from polygraft.server.engine.model_runner import ModelRunner
from polygraft.server.engine.probe import ProbedModel, probe_model
from polygraft.server.engine.selfcheck import check_numbers, reference_logits
from polygraft.server.engine.sizing import DEFAULT_POOL_ROWS, num_cells
from polygraft.server.engine.step_parts import StepParts, StepRunner


@dataclass(frozen=True, slots=True)
class PreparedBase:
    """A base that the engine computes as transformers does, and room for what it needs."""

    base: LoadedBase
    runner: StepRunner
    bank: AdapterBank
    builder: BatchBuilder


def prepare(
    name_or_path: str | Path, config: EngineConfig, path: DevicePath | None = None
) -> PreparedBase:
    """Load a base, prove that it is computed exactly, and size cache and pools.

    path: the device to serve from with its own kernels; None: as the configuration says. Raises
    ModelRefused when the architecture cannot be served, InvalidRequest when the base is not found
    or the device is not there.
    """
    if path is None and config.is_on_gpu:
        path = cuda_path(config.device)
    # Only the engine thread may have workers: with a second pool, OpenMP sees more threads than
    # cores, lets all of them sleep between operations, and a step takes twice as long.
    torch.set_num_threads(1)
    loaded = load_base(name_or_path, config)
    if path is not None:
        place_on_device(loaded, config, path)
    reference = reference_logits(loaded, config.weight_format)
    probed = probe_model(loaded)
    loaded = replace(loaded, geometry=replace(loaded.geometry, kv=probed.kv_shapes))
    parts = (
        _on_host(loaded, probed, config)
        if path is None
        else prepare_device(loaded, probed, config, path)
    )
    check_numbers(loaded, parts.runner, parts.builder, config.block_size, reference)
    names = {name for site in parts.runner.sites for name in site.names}
    geometry = loaded.geometry.with_sites(names, probed.norms)
    return PreparedBase(replace(loaded, geometry=geometry), parts.runner, parts.bank, parts.builder)


def _on_host(loaded: LoadedBase, probed: ProbedModel, config: EngineConfig) -> StepParts:
    device = torch.device("cpu")
    cells = num_cells(config, loaded, probed)
    cache = KVCache(probed.layers, cells, dtype=loaded.dtype, device=device)
    runner = ModelRunner(
        loaded,
        probed,
        cache,
        weight_format=config.weight_format,
        native=config.native_kernels,
    )
    bank = AdapterBank(
        runner.sites,
        pool_rows=config.pool_rows or DEFAULT_POOL_ROWS,
        virtual_token_rows=config.virtual_token_rows,
        hidden_size=loaded.geometry.hidden_size,
        dtype=loaded.dtype,
        device=device,
    )
    builder = BatchBuilder(bank, device, native_group=runner.native_group)
    return StepParts(runner, bank, builder)
