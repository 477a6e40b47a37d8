"""A frozen linear layer in the format that it is served in. Knows tensors only.

plain: `F.linear`. int8: `native.int8`. packed, the default: oneDNN's blocked weight layout is 1.6
to 3 times faster than `F.linear` on a CPU for the row counts of decoding; the operators are private
to torch, so they are feature-tested once and the plain path is taken, and reported by
`PackedLinear.is_packed`, where they are missing.
"""

from __future__ import annotations

import functools
import logging
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polygraft.kernels.native.int8 import Int8Linear

WeightFormat = Literal["packed", "plain", "int8"]

logger = logging.getLogger(__name__)

_PACKED_FOR_ROWS = 8  # the row count that the packed layout is tuned for: a decode step


class Linear(Protocol):
    """`y = x W^T + b` for a frozen weight [out_features, in_features]."""

    out_features: int
    in_features: int
    dtype: torch.dtype  # of x and y

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., out_features]."""
        ...


def make_linear(weight: Tensor, bias: Tensor | None, weight_format: WeightFormat) -> Linear:
    """The layer in this format; it keeps no other copy of the weight. int8 needs the native
    kernels, and float32 or bfloat16."""
    if weight_format == "int8":
        return Int8Linear(weight, bias)
    return PackedLinear(weight, bias, pack=weight_format == "packed")


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch build and CPU run oneDNN's prepacked linear exactly for `dtype`."""
    try:
        weight = torch.eye(32, dtype=dtype)
        x = torch.arange(64, dtype=dtype).view(2, 32)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return bool(torch.equal(y, x))
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        logger.warning("prepacked linear is unavailable for %s, using F.linear: %s", dtype, error)
        return False


class PackedLinear:
    """`y = x W^T + b` for a frozen weight.

    weight: [out_features, in_features]; bias: [out_features] or None. When packed, the plain copy
    is not kept, so the weight is stored once.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias = bias
        self.is_packed = pack and weight.device.type == "cpu" and can_pack(weight.dtype)
        self.weight = (  # laid out as it is multiplied with
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
            if self.is_packed
            else weight.contiguous()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., out_features]."""
        if self.is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, "none", [], ""
            )
            return y
        return F.linear(x, self.weight, self.bias)
