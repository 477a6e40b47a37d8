"""Checks a safetensors file by its header, before the library maps it.

Format: 8 bytes little-endian header length, a JSON object `name -> {dtype, shape,
data_offsets}`, then the tensors back to back. The library accepts duplicate keys (the last one
wins), NUL in names and zero dimensions; this reader does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import parse_json

MAX_HEADER_BYTES = 8 << 20
MAX_METADATA_BYTES = 64 << 10
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
BASE_TENSOR_NAME = re.compile(r"[^\x00-\x1f]{1,512}")
ADAPTER_DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
BASE_DTYPES = ADAPTER_DTYPES | {
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(
    path: Path,
    file: str,
    *,
    max_tensors: int,
    max_header_bytes: int = MAX_HEADER_BYTES,
    base: bool = False,
) -> list[TensorEntry]:
    """The tensors of the file in the order of their bytes; AdapterInvalid names it `file`.

    `base=True` admits the dtypes, names and empty tensors found in base checkpoints. After this
    the file may be mapped: every byte belongs to exactly one tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little") if len(prefix) == 8 else -1
        if not 2 <= length <= max_header_bytes or 8 + length > size:
            allowed = f"2..{min(max_header_bytes, max(size - 8, 0))}"
            raise AdapterInvalid(
                f"the header length {length} does not fit a file of {size} bytes "
                f"(allowed: {allowed}).",
                file=file,
                found=length,
                allowed=allowed,
                hint="The file is truncated or not safetensors; save it again.",
            )
        raw = stream.read(length)
    header = parse_json(raw, file=file, max_bytes=max_header_bytes)
    _check_metadata(header.pop("__metadata__", None), file)
    if len(header) > max_tensors:
        raise AdapterInvalid(
            f"{len(header)} tensors are more than the limit of {max_tensors}.",
            file=file,
            found=len(header),
            allowed=max_tensors,
        )
    entries = sorted(_parse_entries(header, 8 + length, file, base), key=lambda e: (e.begin, e.end))
    _check_contiguous(entries, 8 + length, size, file)
    return entries


def _parse_entries(
    header: Mapping[str, object], start: int, file: str, base: bool
) -> Iterator[TensorEntry]:
    dtypes = BASE_DTYPES if base else ADAPTER_DTYPES
    names = BASE_TENSOR_NAME if base else TENSOR_NAME
    for name, value in header.items():
        if not names.fullmatch(name):
            raise AdapterInvalid(
                "tensor names are letters, digits, '_' and '.', up to 256.",
                file=file,
                item=repr(name)[:80],
                found=name,
            )
        yield _parse_entry(name, value, start, file, dtypes, smallest=0 if base else 1)


def _parse_entry(
    name: str, value: object, start: int, file: str, dtypes: Mapping[str, int], smallest: int
) -> TensorEntry:
    def broken(what: str, found: object, allowed: object = None) -> AdapterInvalid:
        return AdapterInvalid(
            f"{what} {found!r} is not valid" + (f" (allowed: {allowed})." if allowed else "."),
            file=file,
            item=name,
            found=found,
            allowed=allowed,
        )

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise broken("the header entry", value)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise broken("dtype", dtype, ", ".join(dtypes))
    if not _is_int_list(shape) or len(shape) > 8 or any(dim < smallest for dim in shape):
        raise broken("shape", shape, f"at most 8 dimensions of at least {smallest}")
    if not _is_int_list(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise broken("data_offsets", offsets)
    if math.prod(shape) * dtypes[dtype] != offsets[1] - offsets[0]:
        raise broken("the byte length", offsets[1] - offsets[0], math.prod(shape) * dtypes[dtype])
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_int_list(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_contiguous(entries: list[TensorEntry], start: int, size: int, file: str) -> None:
    position = start
    for entry in entries:
        if entry.begin != position:
            raise AdapterInvalid(
                f"the tensor starts at byte {entry.begin}, not {position}: tensors must follow "
                "each other without gaps or overlaps.",
                file=file,
                item=entry.name,
                found=entry.begin,
                allowed=position,
            )
        position = entry.end
    if position != size:
        raise AdapterInvalid(
            f"the tensors end at byte {position} but the file has {size} bytes.",
            file=file,
            found=size,
            allowed=position,
            hint="The file is truncated or has trailing bytes; save it again.",
        )


def _check_metadata(metadata: object, file: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterInvalid(
            "__metadata__ must map strings to strings.",
            file=file,
            item="__metadata__",
            found=metadata,
        )
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise AdapterInvalid(
            f"__metadata__ has {size} characters, the limit is {MAX_METADATA_BYTES}.",
            file=file,
            item="__metadata__",
            found=size,
            allowed=MAX_METADATA_BYTES,
        )
