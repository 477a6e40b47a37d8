"""The engine on a GPU: exact, replayed as launched, isolated, and compiled once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from engine_support.architectures import VOCAB
from engine_support.harness import Harness, random_prompts
from engine_support.mixed import assert_equals_alone
from engine_support.solo import Solo

from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.device.runner import DeviceRunner
from polygraft.server.engine.messages import Sampling

pytestmark = pytest.mark.gpu

LORAS = ("lora4", "rslora8", "patterns16")
PROMPTS = random_prompts(12, vocab=VOCAB, seed=6)


def submit_all(harness: Harness, sampling: Sampling | None = None) -> None:
    for i, prompt in enumerate(PROMPTS):
        kind = (None, *LORAS, "soft")[i % 5]
        harness.submit(str(i), prompt, adapter=kind, max_output_tokens=24, sampling=sampling)


def logits_of(harness: Harness) -> list[torch.Tensor]:
    return [torch.stack(harness.answers[str(i)].logits) for i in range(len(PROMPTS))]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2", "gpt_oss", "mistral"])
@pytest.mark.parametrize("chunk", [7, 64])
def test_float32_equals_peft_alone(
    architecture: str, chunk: int, path: DevicePath, solo: Callable[[str], Solo]
) -> None:
    alone = solo(architecture)
    harness = alone.harness(path=path, max_chunk=chunk)
    assert_equals_alone(alone, harness, preempts=chunk == 7)
    assert harness.engine.stats().device["linear"]["inline"] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_replayed_step_is_the_launched_one_bit_by_bit(
    dtype: str, path: DevicePath, solo: Callable[[str], Solo]
) -> None:
    found = []
    for cuda_graphs in (True, False):
        harness = solo("llama").harness(path=path, dtype=dtype, cuda_graphs=cuda_graphs)
        submit_all(harness)
        harness.run()
        steps = harness.engine.stats().device["steps"]
        assert bool(steps.get("graph")) == cuda_graphs
        found.append(logits_of(harness))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_replays_give_the_same_bits(path: DevicePath, solo: Callable[[str], Solo]) -> None:
    harness = solo("llama").harness(path=path, dtype="bfloat16")
    runner = harness.engine._runner
    assert isinstance(runner, DeviceRunner)
    submit_all(harness)
    for _ in range(20):
        harness.run_step()
    step = runner._graphs[16, 64]
    first = [tensor.clone() for tensor in step.replay()]
    for _ in range(100):
        again = step.replay()
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_broken_adapter_reaches_nobody_else(
    path: DevicePath, solo: Callable[[str], Solo]
) -> None:
    answers = []
    for poisoned in (None, "rslora8"):
        harness = solo("llama").harness(path=path, dtype="bfloat16", poisoned=poisoned)
        submit_all(harness)
        harness.run()
        answers.append(harness.answers)
    clean, broken = answers
    for i in range(len(PROMPTS)):
        if i % 5 == 2:
            assert broken[str(i)].error is not None
        else:
            assert broken[str(i)].token_ids == clean[str(i)].token_ids


def test_sampled_tokens_do_not_depend_on_the_batch(
    path: DevicePath, solo: Callable[[str], Solo]
) -> None:
    sampling = Sampling(0.9, 0.95, 40, seed=3, min_p=0.001, repetition_penalty=1.1)
    found = []
    for max_running in (64, 1):
        harness = solo("llama").harness(path=path, max_running=max_running)
        submit_all(harness, sampling)
        harness.run()
        found.append([harness.answers[str(i)].token_ids for i in range(len(PROMPTS))])
        assert harness.engine.stats().device["sampling"].keys() == {"device"}
    assert found[0] == found[1]


def test_swapping_adapters_compiles_and_captures_nothing(
    path: DevicePath, solo: Callable[[str], Solo]
) -> None:
    import triton

    alone = solo("llama")
    harness = alone.harness(path=path, dtype="bfloat16", pool_rows=64)
    runner = harness.engine._runner
    assert isinstance(runner, DeviceRunner)
    submit_all(harness)  # prefill, whose steps are not captured, is compiled by these
    harness.run()
    expected = [harness.answers[str(i)].token_ids for i in range(len(PROMPTS))]
    graphs, compiled = dict(runner._graphs), []
    hook = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda **what: compiled.append(what)
    try:
        harness.answers.clear()
        submit_all(harness)
        while harness.engine.ledger()["live_sequences"]:
            for kind in LORAS:
                with suppress(AssertionError):  # it is in use
                    harness.adapters.unload(kind)
            harness.run_step()
            for kind in LORAS:
                if kind in harness.adapters.evicted:
                    harness.adapters.load(kind, alone.adapters[kind])
                    harness.engine.wake(kind)
    finally:
        triton.knobs.runtime.jit_post_compile_hook = hook
    assert [harness.answers[str(i)].token_ids for i in range(len(PROMPTS))] == expected
    assert compiled == []
    assert runner._graphs == graphs
