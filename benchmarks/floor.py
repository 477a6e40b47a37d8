"""The floor under a decode step: its matrix products alone, and the memory that they read."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from polygraft.kernels.linear import PackedLinear

BANDWIDTH_BYTES = 1 << 29  # read to measure the bandwidth: far more than any cache


class MatrixProducts:
    """Every matrix product of a Llama model's decode step, with weights of its own per layer."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype) -> None:
        self.dtype = dtype
        layer = layer_shapes(config)
        head = (config["vocab_size"], config["hidden_size"])
        self.shapes = [*layer * config["num_hidden_layers"], head]
        self.linears = [
            PackedLinear(torch.randn(shape).mul_(0.02).to(dtype), None, pack=True)
            for shape in self.shapes
        ]

    @property
    def weight_bytes(self) -> int:
        """Read by every step."""
        num_bytes: int = sum(rows * columns for rows, columns in self.shapes) * self.dtype.itemsize
        return num_bytes

    def step(self, num_rows: int) -> Callable[[], None]:
        """A function that computes all of them for so many rows."""
        inputs = {
            columns: torch.randn(num_rows, columns).to(self.dtype) for _, columns in self.shapes
        }

        @torch.inference_mode()
        def run() -> None:
            for linear in self.linears:
                linear(inputs[linear.in_features])

        return run


def layer_shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    """[out_features, in_features] of q|k|v, o, gate|up and down of one layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = hidden // heads
    return [
        ((heads + 2 * kv_heads) * width, hidden),
        (hidden, heads * width),
        (2 * inner, hidden),
        (hidden, inner),
    ]


def read_bandwidth() -> float:
    """Bytes per second at which all threads together read memory."""
    buffer = torch.ones(BANDWIDTH_BYTES // 4)
    return BANDWIDTH_BYTES / median_seconds(lambda: buffer.sum(), 5)


def median_seconds(function: Callable[[], object], times: int) -> float:
    """Of so many calls, after one that warms up."""
    function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
