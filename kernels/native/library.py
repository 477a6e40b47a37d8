"""The compiled kernels as Python functions, or the reason why there are none."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import torch

from polygraft.kernels.native.build import BuildFailed, compiled_library

logger = logging.getLogger(__name__)

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float

TYPES = {torch.float32: 0, torch.bfloat16: 1}  # the kernels' number of each storage format

_SIGNATURES: dict[str, list[Any]] = {
    "rms_norm": [_INT, _POINTER, _POINTER, _POINTER, _LONG, _INT, _FLOAT],
    "add_rms_norm": [_INT, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _INT, _FLOAT],
    "silu_mul": [_INT, _POINTER, _POINTER, _LONG, _INT],
    "rotate_and_store": [_INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG],
    "lora": [_INT, _POINTER, _POINTER, _POINTER, _POINTER],
    "attention": [_INT, _POINTER, _POINTER, _POINTER, _LONG, _POINTER],
    "int8_linear": [_INT, _POINTER, _POINTER, _POINTER, _LONG],
}


class NativeKernels:
    """One attribute per kernel. Arguments are addresses: the caller sees to types and shapes."""

    def __init__(self, path: Path) -> None:
        # PyDLL keeps the interpreter lock. Each call takes microseconds, and letting go of the lock
        # some hundred times a step gives every other thread a hundred chances to hold the step up.
        library = ctypes.PyDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = library[f"polygraft_{name}"]
            function.argtypes = arguments
            function.restype = None
            setattr(self, name, function)

    rms_norm: ctypes._FuncPointer
    add_rms_norm: ctypes._FuncPointer
    silu_mul: ctypes._FuncPointer
    rotate_and_store: ctypes._FuncPointer
    lora: ctypes._FuncPointer
    attention: ctypes._FuncPointer
    int8_linear: ctypes._FuncPointer


@functools.cache
def native_kernels() -> NativeKernels | None:
    """The kernels of this machine; None, with one warning, where they cannot be compiled."""
    try:
        path = compiled_library()
        _share_openmp()
        return NativeKernels(path)
    except (BuildFailed, OSError) as error:
        logger.warning("native CPU kernels are unavailable, torch's are used: %s", error)
        return None


def _share_openmp() -> None:
    """Make torch's OpenMP runtime visible to libraries that are loaded from now on."""
    for path in sorted(Path(torch.__file__).with_name("lib").glob("libgomp*")):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def require_native_kernels() -> NativeKernels:
    """The kernels; for callers that have checked that there are some."""
    kernels = native_kernels()
    assert kernels is not None, "native kernels are unavailable"
    return kernels
