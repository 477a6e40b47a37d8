"""The fused kernel, as a server launches it: one launch for the base and every adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.gpu.fused import FusedSite
from benchmarks.gpu.sites import SiteCase
from benchmarks.gpu.variants import Launch
from polygraft.kernels.segments import LoraSegment


def make(case: SiteCase) -> Launch:
    """With the case's adapters."""
    return _make(case, case.segments)


def make_base(case: SiteCase) -> Launch:
    """The same launch with an empty plan: how good the plain product of our kernel is."""
    return _make(case, [])


def _make(case: SiteCase, segments: Sequence[LoraSegment]) -> Launch:
    rows, shape, device = case.load.rows, case.shape, case.x.device
    site = FusedSite(rows, shape.inputs, shape.slices, case.load.pool_rows, device)
    site.fill(case.segments)  # which decides the kernel
    site.fill(segments)
    y = torch.empty(rows, shape.outputs, dtype=case.x.dtype, device=device)

    def launch(index: int) -> Tensor:
        copy = case.weights.copies[index]
        return site(case.x, copy.weight, None, copy.a, copy.bt, case.weights.scale, out=y)

    return launch
