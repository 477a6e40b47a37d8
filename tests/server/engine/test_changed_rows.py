"""Adapters that change more than low-rank updates, among others: behind virtual tokens, evicted and
loaded again, in small chunks and after preemption; and a model that is as before afterwards."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from adapter_support.directories import peft_warnings_ignored
from engine_support.adapter_cases import CASES
from engine_support.adapter_corpus import load_peft, logits_of, save_case, save_corpus_base
from engine_support.harness import Answer, Harness, random_prompts
from engine_support.peft_adapters import generate_composed
from tolerances import LOGITS_FP32, relative_error
from torch import Tensor

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.residency import Residency
from polygraft.adapters.weights import AdapterWeights, read_adapter
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    SequenceOutput,
    Stopping,
)

NUM_TOKENS = 6
CHANGES = (
    "lora_bias",
    "trainable tokens",
    "dora everywhere",
    "head trained in full",
    "embedding trained in full",
    "norms of the layers trained in full",
    "LoRA on both, with copies of them",
)
OTHERS = ("two projections", "rank-stabilised", "prompt tuning", "prefix tuning")
PROMPT = [*random_prompts(1, vocab=256, seed=4)[0], 3, 17, 40]


class Saved:
    """A tiny Llama whose embedding and head are tied, and adapters of the corpus."""

    def __init__(self, directory: Path) -> None:
        self.base = save_corpus_base("llama", directory / "base")
        self.adapters: dict[str, Path] = {}
        for case in CASES:
            if case.name in (*CHANGES, *OTHERS):
                self.adapters[case.name] = directory / str(len(self.adapters))
                save_case(case, "llama", self.base, self.adapters[case.name])
        self._expected: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def harness(self, path: DevicePath | None = None, **settings: object) -> Harness:
        harness = Harness(self.base, path, **settings)
        for name, directory in self.adapters.items():
            harness.adapters.load(name, directory)
        return harness

    def assert_equal(self, name: str, answer: Answer, prompt: list[int] = PROMPT) -> None:
        """Its output rows are PEFT's of the adapter alone."""
        assert answer.error is None
        ids = [*prompt, *answer.token_ids[:-1]]
        key = name, tuple(ids)
        if key not in self._expected:
            self._expected[key] = logits_of(load_peft(self.base, self.adapters[name]), ids)
        expected = self._expected[key][len(prompt) - 1 :]
        assert (torch.stack(answer.logits) - expected).abs().max() <= LOGITS_FP32, name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("changes"))


@pytest.mark.parametrize("kernels", ["native", "torch", "device"])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_joining_and_preemption_change_nothing(
    chunk: int, kernels: str, saved: Saved
) -> None:
    """device: the way of a GPU, whose other rows are replayed or go through the tables."""
    path = DevicePath(torch.device("cpu"), "reference") if kernels == "device" else None
    harness = saved.harness(path, max_chunk=chunk, native_kernels=kernels == "native")
    names = list(saved.adapters)
    for i, name in enumerate((*names, *names)):
        harness.submit(f"{i}", PROMPT, adapter=name, max_output_tokens=NUM_TOKENS)
        harness.run_step()
        running = harness.running
        if running and i % 3 == 0:
            harness.preempt(running[i % len(running)])
    harness.run()
    harness.assert_clean()
    for i, name in enumerate((*names, *names)):
        saved.assert_equal(name, harness.answers[f"{i}"])


@pytest.mark.parametrize("name", CHANGES)
def test_behind_a_soft_prompt_and_a_prefix_they_equal_peft(name: str, saved: Saved) -> None:
    fronts: dict[str, dict[str, Any]] = {
        "prompt tuning": {"soft_prompt": saved.adapters["prompt tuning"]},
        "prefix tuning": {"prefix": saved.adapters["prefix tuning"]},
    }
    if name == "trainable tokens":  # PEFT cannot load a second adapter beside them
        del fronts["prefix tuning"]
    harness = saved.harness()
    for front in fronts:
        harness.submit(front, PROMPT, adapter={name: 1.0, front: 1.0}, max_output_tokens=NUM_TOKENS)
    harness.run()
    for front, arguments in fronts.items():
        loras = {saved.adapters[name]: 1.0}
        with peft_warnings_ignored():
            tokens, logits = generate_composed(saved.base, loras, PROMPT, NUM_TOKENS, **arguments)
        answer = harness.answers[front]
        assert answer.token_ids == tokens
        assert (torch.stack(answer.logits) - logits).abs().max() <= LOGITS_FP32


def test_nothing_of_them_stays_on_the_model(saved: Saved) -> None:
    """Requests without them are computed by the very same code, before and afterwards."""
    harness = saved.harness()
    modules = list(harness.engine._runner.base.model.modules())

    def base_alone(name: str) -> list[Tensor]:
        harness.submit(name, PROMPT, max_output_tokens=NUM_TOKENS, prompt_logprobs=0)
        harness.run()
        return harness.answers[name].logits

    before = base_alone("before")
    hooks = [len(module._forward_hooks) for module in modules]
    for name in CHANGES:
        harness.submit(name, PROMPT, adapter=name, max_output_tokens=NUM_TOKENS)
    harness.run()
    assert [len(module._forward_hooks) for module in modules] == hooks
    after = base_alone("after")
    # The second time most of the prompt comes from the cache: the last rows are computed alike.
    assert torch.equal(torch.stack(before[-NUM_TOKENS:]), torch.stack(after[-NUM_TOKENS:]))


@pytest.mark.parametrize("setting", [("dtype", "bfloat16"), ("weight_format", "int8")])
def test_rounding_costs_what_it_costs_a_plain_lora(setting: tuple[str, str], saved: Saved) -> None:
    """Gains of DoRA are made with products of the rounded base."""
    exact, rounded = saved.harness(), saved.harness(**dict([setting]))
    errors = {}
    for name in saved.adapters:
        for harness in (exact, rounded):
            harness.submit(name, PROMPT, adapter=name, max_output_tokens=1)
            harness.run()
        (logits,), (expected,) = (h.answers[name].logits for h in (rounded, exact))
        errors[name] = relative_error(logits, expected)
    plain = max(errors[name] for name in OTHERS)
    assert max(errors.values()) <= max(3 * plain, 0.03), errors


def test_they_are_evicted_and_loaded_again(saved: Saved) -> None:
    """Through residency, with room for some of them at a time."""
    config = EngineConfig(
        dtype="float32", threads=1, kv_bytes=1 << 22, pool_rows=32, virtual_token_rows=600
    )
    engine = Engine.load(saved.base, config)
    reads: list[str] = []

    def read(digest: str) -> AdapterWeights:
        reads.append(digest)
        directory = saved.adapters[digest]
        return read_adapter(directory, engine.geometry, AdapterLimits(), dtype=torch.float32)

    residency = Residency(read, engine.bank, host_bytes=1, on_change=engine.wake, patience=0.02)
    outputs: SimpleQueue[SequenceOutput] = SimpleQueue()
    engine.start(residency, lambda made: [outputs.put(output) for output in made])
    rounds = [*CHANGES, *CHANGES[::-1]]
    try:
        tokens: dict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(rounds):
            residency.acquire(name)
            share = (AdapterShare(name),)
            engine.submit(EngineRequest(str(i), tuple(PROMPT), Stopping(6), adapters=share))
        num_running = len(rounds)
        while num_running:
            output = outputs.get(timeout=60)
            assert output.error is None
            tokens[output.request_id] += output.token_ids
            num_running -= output.is_final
        engine.check_integrity()
        residency.check_integrity()
        assert residency.total_references() == 0
    finally:
        engine.stop()
        residency.close()
    alone = saved.harness()
    for name in CHANGES:
        alone.submit(name, PROMPT, adapter=name, max_output_tokens=6)
    alone.run()
    for i, name in enumerate(rounds):
        assert tokens[str(i)] == alone.answers[name].token_ids
    assert len(reads) > len(CHANGES), "everything found room at once"


def test_what_can_never_find_room_is_said(saved: Saved) -> None:
    bank = Harness(saved.base, virtual_token_rows=200).engine.bank
    geometry = Harness(saved.base).engine.geometry
    directory = saved.adapters["head trained in full"]
    weights = read_adapter(directory, geometry, AdapterLimits(), dtype=torch.float32)
    why = bank.fits(weights)
    assert why is not None
    assert "modules_to_save" in why
    assert "264 rows" in why
    assert "virtual_token_rows (200)" in why


def test_a_gain_that_would_poison_the_pool_is_refused(saved: Saved) -> None:
    """Rank rows of one adapter share tiles with others: 0 * Inf is NaN."""
    engine = Harness(saved.base).engine
    directory = saved.adapters["dora everywhere"]
    weights = read_adapter(directory, engine.geometry, AdapterLimits(), dtype=torch.float32)
    name, magnitude = next(iter(weights.changes.magnitudes.items()))
    magnitude.fill_(3e38)
    weights.modules[name].lora_a.mul_(1e-4)
    weights.modules[name].lora_b.mul_(1e4)
    assert engine.bank.reserve("poison", weights)
    with pytest.raises(AdapterInvalid, match="DoRA") as caught:
        engine.bank.copy("poison", weights)
    assert caught.value.item == name
    assert all(bool(pool.bt.isfinite().all()) for pool in engine.bank.pools)
    engine.bank.free("poison")
    engine.bank.check_integrity()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_room_they_take_is_what_they_are_counted(name: str, dtype: str, saved: Saved) -> None:
    harness = Harness(saved.base, dtype=dtype)
    harness.adapters.load(name, saved.adapters[name])
    bank = harness.engine.bank
    placed = bank.changes(name)
    assert placed is not None
    affine = [(each.gain, each.offset) for each in placed.affine.values()]
    tensors = [tensor for pair in affine for tensor in pair if tensor is not None]
    tensors += [tensor for norm in placed.norms.values() for tensor in norm.values()]
    for table in (placed.embedding, placed.head):
        tensors += table.tensors() if table is not None else ()
    row_bytes = 64 * harness.engine.base.dtype.itemsize
    held = sum(tensor.nbytes for tensor in tensors)
    assert held <= bank._virtual[name] * row_bytes <= 2 * held + row_bytes


def test_guessed_tokens_are_those_that_come_without_guessing(saved: Saved) -> None:
    """A sequence has several rows of logits in a step then, and its adapter changes all of them."""
    prompt = PROMPT[:12] * 4
    plain, guessing = saved.harness(), saved.harness(speculation="auto", speculation_max_rows=128)
    for harness in (plain, guessing):
        for name in saved.adapters:
            harness.submit(name, prompt, adapter=name, max_output_tokens=40)
        harness.run()
    drafted = guessing.engine.stats().speculation
    assert drafted.accepted > 20, "nothing was guessed"
    for name in saved.adapters:
        assert guessing.answers[name].token_ids == plain.answers[name].token_ids, name
