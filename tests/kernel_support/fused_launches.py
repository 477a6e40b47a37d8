"""Launches of the fused linear in Triton's interpreter, as its tests make them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernel_support.fused_cases import FusedCase, random_case
from polygraft.kernels.fused import launch
from polygraft.kernels.fused.launch import Scratch
from polygraft.kernels.fused.plan import ColumnPlan
from polygraft.kernels.fused.tiles import TileConfig
from polygraft.kernels.lazy_memory import lazy_zeros
from polygraft.kernels.segments import LoraSegment

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def forward(
    case: FusedCase,
    plan: ColumnPlan,
    config: TileConfig,
    scratch: Scratch | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Y of a case."""
    pool = (case.a, case.bt, case.scale)
    return launch.lora_linear(
        case.x, case.weight, case.bias, *pool, *plan.tensors, case.slices,
        config=config, scratch=scratch, out=out,
    )  # fmt: skip


def input_gradient(case: FusedCase, plan: ColumnPlan, config: TileConfig, dy: Tensor) -> Tensor:
    """dX of a case."""
    pool = (case.a, case.bt, case.scale)
    return launch.lora_linear_input_gradient(
        dy, case.weight, *pool, *plan.tensors, case.slices, config=config
    )


def two_adapters(rows: int, dtype: torch.dtype = torch.float32) -> FusedCase:
    """Rows by turns of two adapters of rank 4, all in one tile; the last row is base only."""
    case = random_case(3, dtype)
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = case.weight.shape[1], case.weight.shape[0]
    pool = 8, len(case.slices), inputs
    segments = [LoraSegment((((i % 2) * 4, 4, 1.0),), i, i + 1) for i in range(rows - 1)]
    return replace(
        case,
        x=torch.randn(rows, inputs, generator=generator).to(dtype),
        a=(torch.randn(pool, generator=generator) / inputs**0.5).to(dtype),
        bt=torch.randn(8, outputs, generator=generator).to(dtype),
        scale=torch.ones(8, len(case.slices)),
        segments=segments,
    )


def far_apart(tensor: Tensor) -> Tensor:
    """The same with rows so far apart that the last begins beyond 2^31 elements; only the pages
    that are written take memory."""
    stride = 2**31 // (len(tensor) - 1) + 16
    size = (len(tensor) - 1) * stride + tensor[0].numel()
    memory = lazy_zeros((size,), dtype=tensor.dtype, device=torch.device("cpu"))
    far = memory.as_strided(tensor.shape, (stride, *tensor.stride()[1:]))
    far.copy_(tensor)
    return far
