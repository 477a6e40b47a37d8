"""What the settings come to for the parts of an engine."""

from __future__ import annotations

import os

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.base import LoadedBase
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.drafting import DraftLimits
from polygraft.server.engine.fairness import FairRules
from polygraft.server.engine.kv_cache import bytes_per_cell
from polygraft.server.engine.probe import ProbedModel
from polygraft.server.engine.queue_caps import QueueCaps
from polygraft.server.engine.scheduler import SchedulerLimits

DEFAULT_KV_BYTES = 1 << 30  # on a CPU; on a GPU they follow from its memory
DEFAULT_POOL_ROWS = 512


def scheduler_limits(config: EngineConfig) -> SchedulerLimits:
    """Caps of one step."""
    return SchedulerLimits(
        max_running=config.max_running,
        max_batch_tokens=config.step_tokens,
        max_chunk=config.chunk_tokens,
        max_step_adapters=config.max_step_adapters,
        max_step_columns=config.max_step_columns,
        max_skip=config.max_skip,
        drafts=DraftLimits(
            is_default=config.speculation == "auto",
            max_tokens=config.speculation_tokens,
            max_rows=config.speculation_max_rows,
        ),
    )


def fair_rules(config: EngineConfig) -> FairRules:
    """How power is divided."""
    return FairRules(
        namespace_weights=config.namespace_weights, adapter_weights=config.adapter_weights
    )


def queue_caps(config: EngineConfig) -> QueueCaps:
    """What may wait."""
    return QueueCaps(
        max_requests=config.max_queued_requests,
        max_tokens=config.max_queued_tokens,
        namespace_share=config.namespace_queue_share,
    )


def num_cells(config: EngineConfig, base: LoadedBase, probed: ProbedModel) -> int:
    """KV cells within `kv_bytes`, in whole blocks; no more than all running sequences can use."""
    kv_bytes = config.kv_bytes or DEFAULT_KV_BYTES
    block_bytes = bytes_per_cell(probed.layers, base.dtype) * config.block_size
    per_sequence = -(-base.context_length // config.block_size)
    blocks = min(kv_bytes // block_bytes, config.max_running * per_sequence)
    if blocks < 1:
        raise InvalidRequest(
            f"kv_bytes = {kv_bytes} holds no block of {block_bytes} bytes.",
            item="kv_bytes",
            found=kv_bytes,
            allowed=f">= {block_bytes}",
        )
    return int(blocks) * config.block_size


def usable_cores() -> int:
    """Cores this process may use."""
    return max(
        1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
