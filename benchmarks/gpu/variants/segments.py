"""torch alone: the base product, then two small products for each segment and slice, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.sites import Copy, SiteCase
from benchmarks.gpu.variants import Launch


def make(case: SiteCase) -> Launch:
    """Its many launches are captured into the graph like everybody else's."""
    y = torch.empty(case.load.rows, case.shape.outputs, dtype=case.x.dtype, device=case.x.device)
    plans = [_updates(case, copy, y) for copy in case.weights.copies]
    weights = [copy.weight.t() for copy in case.weights.copies]

    def launch(index: int) -> Tensor:
        torch.mm(case.x, weights[index], out=y)
        for x, a, bt, out in plans[index]:
            out.addmm_(torch.mm(x, a), bt)
        return y

    return launch


Update = tuple[Tensor, Tensor, Tensor, Tensor]  # x [m, K], scaled A^T [K, r], B^T [r, n], y [m, n]


def _updates(case: SiteCase, copy: Copy, y: Tensor) -> list[Update]:
    """Of each segment and slice; the last is a view of the rows and columns of y."""
    found = []
    for segment in case.segments:
        rows = slice(segment.start, segment.end)
        for row0, rank, weight in segment.parts:
            pool = slice(row0, row0 + rank)
            for z, low, high in case.slices():
                scale = case.weights.scale[pool, z : z + 1] * weight
                a = (copy.a[pool, z] * scale).to(copy.a.dtype).t()
                found.append((case.x[rows], a, copy.bt[pool, low:high], y[rows, low:high]))
    return found
