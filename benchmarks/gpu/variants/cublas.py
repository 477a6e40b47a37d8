"""The base product alone: what adapters that were merged into the weights would cost."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.sites import SiteCase
from benchmarks.gpu.variants import Launch


def make(case: SiteCase) -> Launch:
    """torch's product, which is cuBLAS on an NVIDIA GPU."""
    y = torch.empty(case.load.rows, case.shape.outputs, dtype=case.x.dtype, device=case.x.device)
    weights = [copy.weight.t() for copy in case.weights.copies]

    def launch(index: int) -> Tensor:
        return torch.mm(case.x, weights[index], out=y)

    return launch
