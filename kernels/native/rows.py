"""What a decoder layer does to rows between its matrix products, one call each.

Tensors are contiguous, float32 or bfloat16, on the CPU. Arithmetic is float32; results are rounded
to the tensors' type where transformers' code rounds.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from polygraft.kernels.native.library import TYPES, require_native_kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [rows, n]; weight: [n] -> [rows, n]. arXiv 1910.07467."""
    out = torch.empty_like(x)
    rows, n = x.shape
    require_native_kernels().rms_norm(
        TYPES[x.dtype], x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, n, eps
    )
    return out


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x += y in place; returns rms_norm(x). x, y: [rows, n]."""
    out = torch.empty_like(x)
    rows, n = x.shape
    require_native_kernels().add_rms_norm(
        TYPES[x.dtype],
        x.data_ptr(),
        y.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        n,
        eps,
    )
    return out


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up. x: [rows, 2n], gate before up -> [rows, n]."""
    rows, n = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, n)
    require_native_kernels().silu_mul(TYPES[x.dtype], x.data_ptr(), out.data_ptr(), rows, n)
    return out


class _Heads(ctypes.Structure):
    _fields_ = (
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("rotary", ctypes.c_int32),
        ("cells", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
    )


class HeadRotation:
    """Normalises heads where the model does, rotates queries and keys, fills the cache. One layer.

    keys, values: [kv_heads, cells, dim] of the layer's cache. q_norm, k_norm: [dim] or None.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        *,
        heads: int,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> None:
        kv_heads, cells, dim = keys.shape
        assert values.shape == keys.shape, "keys and values of one width only"
        self._held = (keys, values, q_norm, k_norm)  # the structure has only their addresses
        self._type = TYPES[keys.dtype]
        self._heads = _Heads(
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            cells=cells,
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            q_norm=None if q_norm is None else q_norm.data_ptr(),
            k_norm=None if k_norm is None else k_norm.data_ptr(),
            eps=eps,
        )
        self._address = ctypes.addressof(self._heads)

    def __call__(self, qkv: Tensor, cosine: Tensor, sine: Tensor, cells: Tensor) -> None:
        """In place. qkv: [rows, (heads + 2 kv_heads) * dim]; cosine, sine: [rows, rotary];
        cells: [rows] int64."""
        self._heads.rotary = cosine.shape[-1]
        require_native_kernels().rotate_and_store(
            self._type,
            self._address,
            qkv.data_ptr(),
            cosine.data_ptr(),
            sine.data_ptr(),
            cells.data_ptr(),
            qkv.shape[0],
        )
