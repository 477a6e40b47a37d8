"""How far a result in some dtype may lie from its oracle; one table, derived, not tuned.

The oracle computes in float32 or float64 on the same rounded inputs. A sum of K products of
unit-scale numbers, accumulated in float32 and rounded once at the end, is off by about
sqrt(K) * eps(float32) from the order of the sum and by eps(dtype) from the last rounding. A
low-rank term is rounded once more in between. Tests must scale random weights by 1 / sqrt(K), else
the absolute tolerance means nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOGITS_FP32 = 1e-4
"""Largest difference of float32 logits from those of PEFT, over a whole model."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Arguments for `torch.testing.assert_close(..., rtol=t.rtol, atol=t.atol)`."""

    rtol: float
    atol: float


def matmul_tolerance(dtype: torch.dtype, reduction: int) -> Tolerance:
    """Tolerance of a (LoRA) linear whose longest sum has `reduction` terms.

    At K = 1024 the pairs are 1.5e-5, 1.5e-5 in float32; 4e-3, 2.4e-3 in float16; and 3.1e-2,
    1.9e-2 in bfloat16. The factors cover the second rounding and a few standard deviations.
    """
    from_order = 4 * math.sqrt(reduction) * torch.finfo(torch.float32).eps
    from_rounding = {torch.float64: 0.0, torch.float32: 0.0}.get(dtype, 4 * torch.finfo(dtype).eps)
    return Tolerance(rtol=from_order + from_rounding, atol=from_order + 0.6 * from_rounding)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Norm-wise error |result - expected| / |expected|, in float64."""
    expected = expected.double()
    return float((result.double() - expected).norm() / expected.norm().clamp_min(1e-30))
