"""With guesses a request gets the very tokens that it gets without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Answer, Harness, random_prompts
from engine_support.peft_adapters import save_adapters
from tiny_models import byte_tokenizer, save_base
from torch import Tensor

from polygraft.server.engine.batch import ForwardBatch
from polygraft.server.engine.messages import FinishReason, Sampling

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")
ON = {"speculation": "auto", "speculation_tokens": 5, "speculation_max_rows": 64}
# A few tokens are preferred, so that there is something to guess under chance and penalties too.
_BIAS = tuple((token, 5.0) for token in (3, 17, 40, 99))
SAMPLINGS = {
    "greedy": Sampling(),
    "top-p": Sampling(0.7, 0.9, seed=5, logit_bias=_BIAS),
    "penalised": Sampling(
        0.8,
        0.95,
        30,
        seed=11,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.05,
        logit_bias=_BIAS,
    ),
}


@dataclass(frozen=True)
class Base:
    base: Path
    adapters: dict[str, Path]

    def harness(self, **settings: object) -> Harness:
        harness = Harness(self.base, **settings)
        for name, directory in self.adapters.items():
            harness.adapters.load(name, directory)
        return harness


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    case = SERVED[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    saved = save_base(directory / "base", case.build(), byte_tokenizer())
    return Base(saved, save_adapters(saved, directory, case.names))


def prompts() -> Iterator[list[int]]:
    """Some that repeat themselves, some that do not."""
    for i, prompt in enumerate(random_prompts(10, vocab=VOCAB, seed=4)):
        yield prompt[:7] * 4 if i % 2 else prompt


def generate(harness: Harness, sampling: Sampling, **fields: object) -> list[Answer]:
    for i, prompt in enumerate(prompts()):
        harness.submit(
            str(i),
            prompt,
            adapter=KINDS[i % len(KINDS)],
            max_output_tokens=40,
            sampling=sampling,
            top_logprobs=2,
            **fields,  # type: ignore[arg-type]
        )
    harness.run()
    harness.assert_clean()
    return [harness.answers[str(i)] for i in range(10)]


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.error is None
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert [e.token_id for e in one.logprobs] == one.token_ids
        assert [e.rank for e in one.logprobs] == [e.rank for e in other.logprobs]
        ours, theirs = ([e.logprob for e in answer.logprobs] for answer in (one, other))
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_tokens_are_those_without_guesses(base: Base, name: str) -> None:
    expected = generate(base.harness(), SAMPLINGS[name])
    for settings in ({}, {"max_chunk": 3, "prefix_cache": False}):
        harness = base.harness(**ON, **settings)
        assert_same(generate(harness, SAMPLINGS[name]), expected)
        stats = harness.engine.stats().speculation
        assert 0 < stats.accepted <= stats.drafted


def test_tokens_are_the_same_on_torch_kernels_and_when_pushed_out(tiny_base: TinyBase) -> None:
    # 6 KiB a block: room for 16 of them, and for one sequence at the end of its answer.
    for settings in ({"kv_bytes": 16 * 6144}, {"native_kernels": False}, {"max_running": 1}):
        expected = generate(tiny_base.harness(speculation="off"), SAMPLINGS["top-p"])
        harness = tiny_base.harness(**ON, **settings)
        assert_same(generate(harness, SAMPLINGS["top-p"]), expected)
        assert harness.engine.stats().speculation.accepted > 0
        assert (harness.engine.stats().preemptions > 0) == ("kv_bytes" in settings)


def test_tokens_are_the_same_when_preempted_at_any_step(tiny_base: TinyBase) -> None:
    expected = generate(tiny_base.harness(speculation="off"), Sampling())
    harness = tiny_base.harness(**ON)
    for i, prompt in enumerate(prompts()):
        harness.submit(str(i), prompt, adapter=KINDS[i % 5], max_output_tokens=40, top_logprobs=2)
    for step in range(60):
        harness.run_step()
        if step % 3 == 0 and harness.running:
            harness.preempt(harness.running[step % len(harness.running)])
    harness.run()
    harness.assert_clean()
    assert_same([harness.answers[str(i)] for i in range(10)], expected)
    assert harness.engine.stats().speculation.accepted > 0


LOOP = [11, 12, 13, 14] * 6


@pytest.fixture
def looping(tiny_base: TinyBase) -> Callable[..., Harness]:
    """An engine that says the same four tokens again and again: every guess is right."""

    def make(**settings: object) -> Harness:
        harness = tiny_base.harness(**{**ON, **settings})
        run = harness.engine._runner.run

        def looped(batch: ForwardBatch) -> Tensor:
            logits = run(batch).clone()  # out of inference mode
            inputs = batch.token_ids[batch.logit_rows]
            following = torch.where(inputs == 14, 11, (inputs + 1) % VOCAB)
            logits[torch.arange(len(logits)), following] += 100.0
            return logits

        harness.engine._runner.run = looped  # type: ignore[method-assign]
        return harness

    return make


def test_right_guesses_save_steps_and_are_charged_as_output(
    looping: Callable[..., Harness],
) -> None:
    harness = looping()
    harness.submit("r", LOOP, max_output_tokens=40)
    steps = 0
    while not harness.answers["r"].is_done:
        steps += harness.run_step()
    assert harness.answers["r"].token_ids == (LOOP * 2)[:40]
    stats = harness.engine.stats().speculation
    assert stats.accepted == stats.drafted == 40 - steps
    assert steps <= 10
    harness.assert_clean()


@pytest.mark.parametrize("length", range(1, 14))
def test_the_answer_ends_inside_an_accepted_run(
    looping: Callable[..., Harness], length: int
) -> None:
    harness = looping()
    harness.submit("length", LOOP, max_output_tokens=length)
    harness.submit("stop", LOOP, max_output_tokens=40, stop=frozenset({LOOP[length - 1]}))
    least = {"stop": frozenset({11}), "min_output_tokens": length}
    harness.submit("least", LOOP, max_output_tokens=40, **least)
    off = looping(speculation="off")
    off.submit("least", LOOP, max_output_tokens=40, **least)
    off.run()
    harness.run()
    answer = harness.answers["length"]
    assert answer.token_ids == (LOOP * 2)[:length]
    assert answer.finish_reason is FinishReason.LENGTH
    assert harness.answers["stop"].token_ids == LOOP[: (length - 1) % 4 + 1]
    assert harness.answers["stop"].finish_reason is FinishReason.STOP
    assert harness.answers["least"].token_ids == off.answers["least"].token_ids
    assert len(harness.answers["least"].token_ids) > length
    harness.assert_clean()


def test_a_request_decides_for_itself(looping: Callable[..., Harness]) -> None:
    harness = looping()
    harness.submit("r", LOOP, max_output_tokens=20, speculation=False)
    harness.run()
    assert harness.engine.stats().speculation.drafted == 0
    harness = looping(speculation="off")
    harness.submit("r", LOOP, max_output_tokens=20, speculation=True)
    harness.run()
    assert harness.engine.stats().speculation.accepted > 0


def test_blocks_of_rejected_guesses_are_never_shared(tiny_base: TinyBase) -> None:
    """What the next request finds in the prefix cache gives the tokens of a fresh engine."""
    for seed in range(3):
        sampling = Sampling(0.7, 0.9, seed=seed, logit_bias=_BIAS)
        harness = tiny_base.harness(**ON)
        first = generate(harness, sampling)
        stats = harness.engine.stats().speculation
        assert stats.accepted < stats.drafted
        for i, (prompt, answer) in enumerate(zip(prompts(), first, strict=True)):
            kind = KINDS[i % len(KINDS)]
            fresh = tiny_base.harness(speculation="off", prefix_cache=False)
            for one, name in ((harness, f"again {i}"), (fresh, "fresh")):
                one.submit(name, prompt + answer.token_ids, adapter=kind, top_logprobs=0)
                one.run()
            found = harness.answers[f"again {i}"]
            assert found.num_cached >= 32
            assert_same([found], [fresh.answers["fresh"]])


def test_a_guess_that_is_not_finite_harms_nobody(looping: Callable[..., Harness]) -> None:
    """Whatever a draft does to the numbers, the sequence goes on without it."""
    harness = looping()
    run, cache = harness.engine._runner.run, harness.engine._runner.cache
    num_hurt = 0

    def hurting(batch: ForwardBatch) -> Tensor:
        nonlocal num_hurt
        logits = run(batch)
        for group in batch.samples:
            if group.chunk.draft:
                num_hurt += 1
                logits[group.first + group.count - 1] = torch.nan
                start = group.chunk.sequence.num_computed
                cells = group.chunk.sequence.cells(start, start + group.chunk.num_tokens)
                for keys in cache.keys:
                    keys[:, torch.from_numpy(cells)] = torch.nan
        return logits

    harness.engine._runner.run = hurting  # type: ignore[method-assign]
    harness.submit("r", LOOP, max_output_tokens=30)
    harness.submit("beside", LOOP[:9], max_output_tokens=30, speculation=False)
    while not num_hurt:
        harness.run_step()
    assert all(keys.isfinite().all() for keys in cache.keys)
    harness.run()
    assert num_hurt == 1
    assert harness.answers["r"].token_ids == (LOOP * 2)[:30]
    assert harness.answers["beside"].token_ids == ([12, 13, 14, 11] * 10)[:30]
    harness.assert_clean()
