"""The way of a GPU, on a CPU: padded steps from static tables, by the kernels' torch twins.

Its Triton kernels compute the same in `interpreted/`, its graphs and streams on a GPU only
(`tests/gpu`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine_support.mixed import assert_equals_alone
from engine_support.solo import Solo

from polygraft.server.engine.device.path import DevicePath

PATH = DevicePath(torch.device("cpu"), "reference")
# Architecture, chunk, prefix cache, preemption: windows, soft caps, sinks, experts, Conv1D, heads
# of two widths, and projections of one site by ones, twos and threes.
COMBINATIONS = [
    ("llama", 1, True, True),
    ("llama", 7, False, True),
    ("llama", 64, True, False),
    ("qwen2", 7, True, False),
    ("gemma2", 7, False, True),
    ("gemma3", 64, True, False),
    ("gpt2", 7, True, False),
    ("gpt_oss", 7, True, True),
    ("phi3", 64, False, False),
    ("deepseek_v3", 7, True, False),
    ("mimo_v2_flash", 64, True, False),
]


@pytest.mark.parametrize(("architecture", "chunk", "prefix_cache", "preempts"), COMBINATIONS)
def test_a_mixed_batch_equals_peft_alone(
    architecture: str,
    chunk: int,
    prefix_cache: bool,
    preempts: bool,
    solo: Callable[[str], Solo],
) -> None:
    alone = solo(architecture)
    harness = alone.harness(path=PATH, max_chunk=chunk, prefix_cache=prefix_cache)
    assert_equals_alone(alone, harness, preempts=preempts)
    counts = harness.engine.stats().device
    assert counts["steps"]["graph"] > 20
    assert bool(counts["steps"].get("eager")) == (chunk > 16)
    assert sum(counts["linear"].values()) - counts["linear"]["base"] > 20
    assert counts["linear"].get("general", 0) == 0
    assert counts["sampling"].keys() == {"device"}
