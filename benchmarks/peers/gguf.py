"""Writes GGUF, llama.cpp's file format for weights (ggml/include/gguf.h, version 3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

MAGIC, VERSION = b"GGUF", 3
ALIGNMENT = 32  # of each tensor's data, in bytes
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # gguf_type
GGML_TYPES = {torch.float32: 0, torch.bfloat16: 30}

Value = int | float | str | list[str] | list[int]
"""Written as uint32, float32, string, array of strings, array of int32."""


def write_gguf(
    path: Path, fields: Mapping[str, Value], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write metadata and tensors, each in its own dtype; KeyError for a dtype GGUF lacks here.

    GGUF counts dimensions from the fastest: a [rows, columns] tensor is listed as columns, rows.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(fields)))
        for key, value in fields.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for name, tensor in tensors.items():
            shape = tuple(reversed(tensor.shape))
            file.write(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", GGML_TYPES[tensor.dtype], offset))
            offset += _aligned(tensor.nbytes)
        _pad(file)
        for tensor in tensors.values():
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            _pad(file)


def _value(value: Value) -> bytes:
    match value:
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case list():
            return struct.pack("<I", ARRAY) + _array(value)


def _array(values: Sequence[str] | Sequence[int]) -> bytes:
    kind = INT32 if values and isinstance(values[0], int) else STRING
    items = (_string(v) if isinstance(v, str) else struct.pack("<i", v) for v in values)
    return struct.pack("<IQ", kind, len(values)) + b"".join(items)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))
