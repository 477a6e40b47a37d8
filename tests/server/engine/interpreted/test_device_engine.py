"""The way of a GPU with its Triton kernels, interpreted: every request equals PEFT alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_support.mixed import assert_equals_alone
from engine_support.solo import Solo

from polygraft.kernels.paged import kernel
from polygraft.server.engine.device import builder
from polygraft.server.engine.device.path import DevicePath

PATH = DevicePath(torch.device("cpu"), "triton")


def test_the_interpreter_runs_here() -> None:
    assert kernel.INTERPRETED.value


@pytest.mark.parametrize(
    ("architecture", "chunk", "variant", "which"),
    [
        ("gemma2", 20, "inline", slice(0, None, 4)),
        ("llama", 64, "producers", slice(1, 6, 2)),  # whose waiting takes the longest
    ],
)
def test_a_mixed_batch_equals_peft_alone(
    architecture: str,
    chunk: int,
    variant: str,
    which: slice,
    solo: Callable[[str], Solo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variant == "producers":  # as if each step had many rank columns
        monkeypatch.setattr(builder, "column_class", lambda tile, segment: 1024 if tile else 0)
    every = solo(architecture)
    alone = replace(every, requests=every.requests[which])  # the interpreter takes its time
    assert {request.kind is None for request in alone.requests} == {True, False}
    harness = alone.harness(path=PATH, max_chunk=chunk, max_running=8, max_batch_tokens=64)
    assert_equals_alone(alone, harness, preempts=False)
    counts = harness.engine.stats().device
    assert min(counts["steps"]["graph"], counts["steps"]["eager"]) > 2
    assert counts["linear"][variant] > 5
