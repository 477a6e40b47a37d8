"""From a name to a base that is proven, patched and ready to run steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.base import LoadedBase, load_base
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.kv_cache import KVCache
from polygraft.server.engine.model_runner import ModelRunner
from polygraft.server.engine.probe import probe_model
from polygraft.server.engine.selfcheck import check_numbers, reference_logits
from polygraft.server.engine.sizing import num_cells


@dataclass(frozen=True, slots=True)
class PreparedBase:
    """A base that the engine computes as transformers does, and room for what it needs."""

    base: LoadedBase
    runner: ModelRunner
    bank: AdapterBank


def prepare(name_or_path: str | Path, config: EngineConfig) -> PreparedBase:
    """Load a base, prove that it is computed exactly, and size cache and pools.

    Raises ModelRefused when the architecture cannot be served, InvalidRequest when the base is not
    found.
    """
    # Only the engine thread may have workers: with a second pool, OpenMP sees more threads than
    # cores, lets all of them sleep between operations, and a step takes twice as long.
    torch.set_num_threads(1)
    loaded = load_base(name_or_path, config)
    reference = reference_logits(loaded, config.weight_format)
    probed = probe_model(loaded)
    loaded = replace(loaded, geometry=replace(loaded.geometry, kv=probed.kv_shapes))
    device = torch.device(config.device)
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
        pool_rows=config.pool_rows,
        virtual_token_rows=config.virtual_token_rows,
        hidden_size=loaded.geometry.hidden_size,
        dtype=loaded.dtype,
        device=device,
    )
    check_numbers(loaded, runner, bank, config.block_size, reference)
    names = {name for site in runner.sites for name in site.names}
    geometry = loaded.geometry.with_sites(names, probed.norms)
    return PreparedBase(replace(loaded, geometry=geometry), runner, bank)
