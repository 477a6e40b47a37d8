"""Zeros that cost no memory before they are written."""

from __future__ import annotations

import psutil
import pytest
import torch

from polygraft.kernels.lazy_memory import lazy_zeros

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_zeros_that_can_be_written(dtype: torch.dtype) -> None:
    tensor = lazy_zeros((3, 5, 7), dtype=dtype, device=CPU)
    assert tensor.dtype == dtype
    assert tensor.shape == (3, 5, 7)
    assert not tensor.any()
    tensor[1, 2] = 1.5
    assert float(tensor.sum()) == 1.5 * 7


def test_pages_are_taken_when_they_are_written() -> None:
    process, size = psutil.Process(), 1 << 28
    before = process.memory_info().rss
    tensor = lazy_zeros((size // 2,), dtype=torch.bfloat16, device=CPU)
    assert process.memory_info().rss - before < size // 8
    tensor[: size // 4] = 1.0
    assert process.memory_info().rss - before > size // 4
