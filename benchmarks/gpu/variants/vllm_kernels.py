"""vLLM's LoRA kernels behind the base product: zero, shrink, expand, as `PunicaWrapperGPU` does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.sites import SiteCase
from benchmarks.gpu.variants import Launch
from benchmarks.gpu.variants.stacked import by_slice, slot_of_row, sources
from benchmarks.peers.lora_kernels.stubs import install_vllm


def make(case: SiteCase) -> Launch:
    """Raises VariantAbsent where the kernels were not installed."""
    install_vllm(Path(sources()))
    from vllm.lora.ops.triton_ops import lora_shrink_op, utils
    from vllm.lora.ops.triton_ops.lora_expand_op import lora_expand
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

    # They remember tensors by address, and addresses of the last case are used again.
    utils._LORA_A_PTR_DICT.clear()
    utils._LORA_B_PTR_DICT.clear()
    rows, device = case.load.rows, case.x.device
    if device.type == "cpu":  # 64 parts of a small sum take the interpreter a minute
        lora_shrink_op.get_lora_op_configs = _few_parts
    meta = LoRAKernelMeta.make(max(case.load.adapters, 1), rows, device)
    meta.prepare_tensors(torch.tensor(slot_of_row(case), dtype=torch.int32, device=device))
    arguments = meta.meta_args(rows, specialize_active_lora=True)
    y = torch.empty(rows, case.shape.outputs, dtype=case.x.dtype, device=device)
    low = torch.empty(len(case.shape.slices), rows, max(case.load.ranks), device=device)
    factors = [by_slice(case, copy) for copy in case.weights.copies]
    weights = [copy.weight.t() for copy in case.weights.copies]

    def launch(index: int) -> Tensor:
        a, b = factors[index]
        torch.mm(case.x, weights[index], out=y)
        lora_shrink_op.lora_shrink(case.x, a, low, *arguments, 1.0)
        lora_expand(low, b, y, *arguments, offset_start=0, add_inputs=True)
        return y

    return launch


def _few_parts(*_: object, **__: object) -> dict[str, int]:
    """A configuration of the shrink for the interpreter."""
    return {"block_m": 32, "block_n": 16, "block_k": 32, "split_k": 2, "num_warps": 4,
            "num_ctas": 1, "num_stages": 2}  # fmt: skip
