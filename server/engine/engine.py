"""The engine: one thread that owns every tensor and runs steps.

Everybody else talks to it through queues: `submit` and `abort` in, `publish` (once per step) out.
It knows no gRPC and no text; stop strings are the front-end's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
import torch

from polygraft.adapters.errors import InvalidRequest, NonFinite, Overloaded, Unavailable
from polygraft.adapters.geometry import BaseGeometry
from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.base import load_base
from polygraft.server.engine.batch import Chunk, ForwardBatch, SampleRows
from polygraft.server.engine.batch_builder import BatchBuilder
from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.kv_cache import KVCache, bytes_per_cell
from polygraft.server.engine.messages import (
    EngineRequest,
    EngineStats,
    FinishReason,
    SequenceOutput,
)
from polygraft.server.engine.model_runner import ModelRunner
from polygraft.server.engine.probe import probe_model
from polygraft.server.engine.sampler import log_sum_exp, sample
from polygraft.server.engine.scheduler import Scheduler, SchedulerLimits
from polygraft.server.engine.selfcheck import check_numbers, reference_logits
from polygraft.server.engine.sequence import Sequence

logger = logging.getLogger(__name__)

Publish = Callable[[list[SequenceOutput]], None]
_WAKE = object()
_STOP = object()
_IDLE_WAIT = 0.05  # seconds between looks at deadlines when nothing can run


class AdapterReferences(Protocol):
    """What the engine needs of `adapters.residency.Residency`."""

    def is_ready(self, digest: str) -> bool:
        """Whether the version is on the device."""
        ...

    def failure(self, digest: str) -> Exception | None:
        """Why the version could not be loaded, if it could not."""
        ...

    def release(self, digest: str) -> None:
        """Give back one reference."""
        ...
