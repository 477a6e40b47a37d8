"""Headers that the safetensors library accepts, or that lie, are refused before mapping."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_support.directories import lora_tensors
from safetensors import safe_open
from safetensors.torch import save

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.safetensors_header import TensorEntry, read_header

NAME = "adapter_model.safetensors"


def read(path: Path, **options: Any) -> list[TensorEntry]:
    return read_header(path, NAME, **{"max_tensors": 100, **options})


def write(path: Path, header: dict[str, Any] | str, data: bytes = b"\0" * 16) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_entries_are_those_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(save(lora_tensors(), metadata={"format": "pt"}))
    with safe_open(path, framework="pt") as file:
        expected = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert {e.name: e.shape for e in read(path)} == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a\0b": entry()}, "tensor names are letters"),
        ({"a/b": entry()}, "tensor names are letters"),
        ({"": entry()}, "tensor names are letters"),
        ({"a" * 257: entry()}, "tensor names are letters"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ({"a": entry("F64", (2,))}, "dtype 'F64' is not valid"),
        ({"a": entry("I64", (2,))}, "dtype 'I64' is not valid"),
        ({"a": entry(7)}, "dtype 7 is not valid"),  # type: ignore[arg-type]
        ({"a": entry(shape=(0,), offsets=(0, 0))}, "shape"),
        ({"a": entry(shape=(-4,))}, "shape"),
        ({"a": entry(shape=(4.0,))}, "shape"),
        ({"a": entry(shape=(True, 4))}, "shape"),
        ({"a": entry(shape="4")}, "shape"),
        ({"a": entry(shape=[1] * 9)}, "shape"),
        ({"a": entry(shape=(2**40, 2**40))}, "byte length"),
        ({"a": entry(shape=(5,))}, "byte length"),
        ({"a": entry(offsets=(16, 0))}, "data_offsets"),
        ({"a": entry(offsets=(-16, 0))}, "data_offsets"),
        ({"a": entry(offsets=(0,))}, "data_offsets"),
        ({"a": entry(shape=(2,), offsets=(0, 8))}, "the file has"),
        ({"a": entry(shape=(2,), offsets=(8, 16))}, "starts at byte"),
        ({"a": entry(), "b": entry()}, "starts at byte"),
        ({"a": {**entry(), "x": 1}}, "the header entry"),
        ({"a": [1]}, "the header entry"),
        ({"a": entry(), "__metadata__": {"x": 1}}, "__metadata__ must map"),
        ({"a": entry(), "__metadata__": {"x": "y" * 70_000}}, "__metadata__ has"),
        ({f"t{i}": entry() for i in range(101)}, "101 tensors are more than the limit of 100"),
    ],
)
def test_headers_that_lie_or_surprise_are_refused(
    header: dict[str, Any] | str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterInvalid, match=message) as caught:
        read(write(tmp_path / "0.part", header))
    assert caught.value.file == NAME


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 8, (1000).to_bytes(8, "little")])
def test_files_too_short_for_their_header_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "0.part"
    path.write_bytes(data)
    with pytest.raises(AdapterInvalid, match="header length"):
        read(path)


def test_a_truncated_or_extended_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.part"
    data = save(lora_tensors())
    for wrong in (data[:-1], data + b"\0", data[:-4], data[:20]):
        path.write_bytes(wrong)
        with pytest.raises(AdapterInvalid):
            read(path)


def test_a_base_may_have_what_an_adapter_may_not(tmp_path: Path) -> None:
    header = {
        "model/x": entry("I64", (2,), (0, 16)),
        "empty": entry("F32", (0, 3), (16, 16)),
    }
    assert len(read(write(tmp_path / "x", header), base=True)) == 2


def test_no_mutation_of_a_file_passes_that_the_library_refuses(tmp_path: Path) -> None:
    """Bytes changed, removed or added at random: an error of ours or a file the library maps."""
    random.seed(0)
    path = tmp_path / "0.part"
    good = save({**lora_tensors(), "x": torch.ones(3, dtype=torch.float16)})
    header_end = 8 + int.from_bytes(good[:8], "little")
    accepted = 0
    for _ in range(500):
        data = bytearray(good)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(header_end)
            data[at : at + random.choice((0, 1, 1, 1))] = bytes(
                random.choice((b"", b"0", b"9", b'"', b"{", b"\0", b"\xff", random.randbytes(1)))
            )
        path.write_bytes(data)
        with contextlib.suppress(AdapterInvalid):
            entries = read(path)
            accepted += 1
            with safe_open(path, framework="pt") as file:
                for tensor in entries:
                    assert tuple(file.get_tensor(tensor.name).shape) == tensor.shape
    assert 0 < accepted < 500
