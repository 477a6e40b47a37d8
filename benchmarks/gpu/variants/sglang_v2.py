"""SGLang's plan-driven kernels: the shrink beside the base product where its table says so."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.sites import SiteCase
from benchmarks.gpu.variants import Launch
from benchmarks.gpu.variants.stacked import packed, slot_of_row, sources
from benchmarks.peers.lora_kernels.stubs import Phase, geometry_on_cpu, install_sglang

LARGEST_DECODE = 256  # rows


def make(case: SiteCase) -> Launch:
    """Its own plan table of the GPU; routes are made once per step and are not timed.

    Raises VariantAbsent where the kernels were not installed.
    """
    install_sglang(Path(sources()))
    from sglang.kernels.ops.lora.common import lora_b
    from sglang.srt.lora.dense import runner as runner_module
    from sglang.srt.lora.dense.plan import DenseLoraKind
    from sglang.srt.lora.workspace import LoraWorkspace

    rows, device = case.load.rows, case.x.device
    scalings = [float(case.weights.scale[row0, 0]) for row0, _ in case.load.rank_rows()]
    ranks = [rank for _, rank in case.load.rank_rows()]
    if device.type == "cpu":
        runner_module.slice_geometry = geometry_on_cpu(lora_b)
    runner = runner_module.DenseLoraRunner(
        LoraWorkspace(), max_loras=case.load.adapters, device=device
    )
    runner.begin_batch(
        token_slots=torch.tensor(slot_of_row(case), dtype=torch.int32, device=device),
        lora_ranks=torch.tensor(ranks, dtype=torch.int32, device=device),
        scalings=torch.tensor(scalings, device=device),
        num_tokens=rows,
        phase=Phase.DECODE if rows <= LARGEST_DECODE else Phase.PREFILL,
        graph_mode=device.type == "cuda",
    )
    plan = runner.plan_for(
        DenseLoraKind.LINEAR, max(ranks), case.shape.inputs, case.shape.outputs, num_tokens=rows
    )
    offsets = (0, *(high for _, _, high in case.slices()))
    y = torch.empty(rows, case.shape.outputs, dtype=case.x.dtype, device=device)
    factors = [packed(case, copy) for copy in case.weights.copies]
    weights = [copy.weight.t() for copy in case.weights.copies]

    def launch(index: int) -> Tensor:
        a, b = factors[index]
        result: Tensor = runner.apply(
            case.x, lambda: torch.mm(case.x, weights[index], out=y), plan, a=a, b=b, offsets=offsets
        )
        return result

    return launch
