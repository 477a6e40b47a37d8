"""The buffer gives the tensors that the library gives, and sees what is not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polygraft.adapters.safetensors_header import read_header
from polygraft.adapters.tensor_buffer import TensorBuffer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def save(path: Path, *dtypes: torch.dtype) -> Path:
    """Tensors of different sizes, so that some do not begin at a multiple of four."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"t{index}": torch.randn(1 + index % 3, 3, generator=generator).to(dtype)
        for index, dtype in enumerate(dtypes)
    }
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [*[(d,) * 5 for d in DTYPES], DTYPES * 3])
def test_every_tensor_is_the_librarys_own(
    stored: tuple[torch.dtype, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    path = save(tmp_path / "f", *stored)
    entries = read_header(path, "f", max_tensors=100)
    buffer = TensorBuffer(path, entries, dtype)
    expected = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    assert len(entries) == len(expected)
    for entry in entries:
        assert torch.equal(buffer[entry], expected[entry.name])
        assert buffer[entry].dtype is dtype
    assert buffer.is_finite
    largest = max(float(tensor.float().abs().max()) for tensor in expected.values())
    assert buffer.largest >= largest
    assert buffer.largest == pytest.approx(largest, rel=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stored", DTYPES)
def test_what_is_not_finite_is_seen(value: float, stored: torch.dtype, tmp_path: Path) -> None:
    path = save(tmp_path / "f", *[stored] * 3)
    tensors = load_file(path)
    tensors["t1"][1, 2] = value
    save_file(tensors, path)
    entries = read_header(path, "f", max_tensors=100)
    assert not TensorBuffer(path, entries, torch.float32).is_finite


def test_an_overflow_of_the_cast_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_file({"t": torch.tensor([1.0, -1e6])}, path)
    entries = read_header(path, "f", max_tensors=100)
    assert TensorBuffer(path, entries, torch.bfloat16).is_finite
    assert not TensorBuffer(path, entries, torch.float16).is_finite
