"""SGLang's chunked kernels behind the base product: shrink, then expand in place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.sites import SiteCase
from benchmarks.gpu.variants import Launch
from benchmarks.gpu.variants.stacked import packed, sources
from benchmarks.peers.lora_kernels.stubs import LoRABatchInfo, install_sglang

_CHUNKS = ((256, 128), (64, 32), (0, 16))  # (from so many rows, rows of a chunk), as they choose


def make(case: SiteCase) -> Launch:
    """Raises VariantAbsent where the kernels were not installed."""
    install_sglang(Path(sources()))
    from sglang.kernels.ops.lora.dense.chunked_sgmv_expand import chunked_sgmv_lora_expand_forward
    from sglang.kernels.ops.lora.dense.chunked_sgmv_shrink import chunked_sgmv_lora_shrink_forward

    step = _batch_info(case)
    bounds = [0, *(high for _, _, high in case.slices())]
    host = torch.tensor(bounds, dtype=torch.int32)
    offsets = host.to(case.x.device)
    y = torch.empty(case.load.rows, case.shape.outputs, dtype=case.x.dtype, device=case.x.device)
    factors = [packed(case, copy) for copy in case.weights.copies]
    weights = [copy.weight.t() for copy in case.weights.copies]
    num_slices, widest = len(case.shape.slices), max(case.shape.slices)

    def launch(index: int) -> Tensor:
        a, b = factors[index]
        torch.mm(case.x, weights[index], out=y)
        low = chunked_sgmv_lora_shrink_forward(case.x, a, step, num_slices)
        chunked_sgmv_lora_expand_forward(low, b, step, offsets, widest, y, host)
        return y

    return launch


def _batch_info(case: SiteCase) -> LoRABatchInfo:
    """Segments cut into chunks; rows are in order already. The rows of no adapter are in none."""
    rows = case.load.rows
    chunk = next(size for least, size in _CHUNKS if rows >= least)
    bounds, slots = [0], []
    for slot, segment in enumerate(case.segments):
        for start in range(segment.start, segment.end, chunk):
            bounds.append(min(start + chunk, segment.end))
            slots.append(slot)
    device, ranks = case.x.device, [rank for _, rank in case.load.rank_rows()]
    scalings = [float(case.weights.scale[row0, 0]) for row0, _ in case.load.rank_rows()]

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return LoRABatchInfo(
        use_cuda_graph=False,
        bs=len(slots),
        num_segments=len(slots),
        seg_indptr=ints(bounds),
        weight_indices=ints(slots),
        lora_ranks=ints(ranks),
        scalings=torch.tensor(scalings, device=device),
        max_len=chunk,
        seg_lens=None,
        permutation=ints(list(range(rows))),
    )
