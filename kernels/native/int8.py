"""A frozen linear layer with 8-bit weights, multiplied by rows that are rounded to 8 bits as well.

Weights have one scale per output, rows one scale each (LLM.int8(), Dettmers et al., arXiv
2208.07339, without its separate path for outliers). The sums are exact integers, so a row's result
is the same alone and among any neighbours.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from polygraft.kernels.native.library import TYPES, require_native_kernels

PANEL, QUAD = 32, 4  # of the source
_OFFSET = 128  # ZERO of the source
_LEVELS = 127


class _Weights(ctypes.Structure):
    _fields_ = (
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Int8Linear:
    """`y = s_row * s_out * (round(x / s_row) W8^T) + b`, W8 = round(W / s_out), each s = max / 127.

    weight: [out_features, in_features], float32 or bfloat16; bias: [out_features] or None. Only the
    8-bit copy is kept. Needs the native kernels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self._type = TYPES[weight.dtype]
        quantized, scale = quantize_rows(weight)
        self._held = (  # the structure has only their addresses
            _in_panels(quantized),
            _padded(scale),
            _padded(quantized.sum(1, dtype=torch.int32) * _OFFSET),
            None if bias is None else bias.detach().to(weight.dtype).contiguous(),
        )
        panels, scales, sums, held_bias = self._held
        self._weights = _Weights(
            inputs=self.in_features,
            outputs=self.out_features,
            weight=panels.data_ptr(),
            scale=scales.data_ptr(),
            sums=sums.data_ptr(),
            bias=None if held_bias is None else held_bias.data_ptr(),
        )
        self._address = ctypes.addressof(self._weights)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in_features] of the weight's type -> [..., out_features]."""
        assert x.dtype is self.dtype
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        rows = x.numel() // self.in_features
        require_native_kernels().int8_linear(
            self._type, self._address, x.data_ptr(), y.data_ptr(), rows
        )
        return y


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, n] as int8 and float32 scales [rows]; the largest of each row becomes 127."""
    largest = weight.abs().amax(1).float()
    scale = torch.where(largest > 0, largest / _LEVELS, torch.ones(()))
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    for low in range(0, len(weight), 4096):  # an output head in float32 is hundreds of megabytes
        part = weight[low : low + 4096].float() / scale[low : low + 4096, None]
        quantized[low : low + 4096] = part.round().to(torch.int8)
    return quantized, scale


def _in_panels(quantized: Tensor) -> Tensor:
    """[out, in] -> [panels, quads, PANEL, QUAD], zeros added at both ends."""
    rows, columns = quantized.shape
    padded = torch.nn.functional.pad(quantized, (0, -columns % QUAD, 0, -rows % PANEL))
    panels = padded.view(-1, PANEL, padded.shape[1] // QUAD, QUAD)
    return panels.transpose(1, 2).contiguous()


def _padded(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, -len(values) % PANEL)).contiguous()
