"""Who builds and computes steps, whatever they run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.batch import ForwardBatch
from polygraft.server.engine.batch_builder import BatchBuilder
from polygraft.server.engine.kv_cache import KVCache
from polygraft.server.engine.sites import Site
from polygraft.server.engine.step_logits import StepLogits


class StepRunner(Protocol):
    """Computes steps. Engine thread only."""

    cache: KVCache
    sites: list[Site]

    def run(self, batch: ForwardBatch) -> Tensor | StepLogits:
        """The logits of the rows in `batch.logit_rows`."""
        ...

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How often what ran, by what there is a choice of; empty where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class StepParts:
    """Whoever builds and computes steps, and where adapters are meanwhile."""

    runner: StepRunner
    bank: AdapterBank
    builder: BatchBuilder
