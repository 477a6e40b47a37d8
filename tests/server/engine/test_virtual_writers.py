"""Requests that come together for a cold soft prompt or prefix compute its tokens once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Harness, random_prompts
from engine_support.peft_adapters import (
    NUM_PREFIX,
    NUM_VIRTUAL,
    generate_alone,
    save_adapters,
    save_virtual_adapters,
)
from tiny_models import byte_tokenizer, save_base

BLOCK = 4
LONG = {"soft": NUM_VIRTUAL // BLOCK * BLOCK, "prefix": NUM_PREFIX // BLOCK * BLOCK}
PROMPTS = random_prompts(6, vocab=VOCAB, seed=9, longest=20)
Make = Callable[..., Harness]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    directory, case = tmp_path_factory.mktemp("writers"), SERVED["llama"]
    base = save_base(directory / "base", case.build(), byte_tokenizer())
    adapters = save_adapters(base, directory, case.names)
    return base, adapters | save_virtual_adapters(base, directory)


@pytest.fixture
def make(saved: tuple[Path, dict[str, Path]]) -> Make:
    def make(**settings: object) -> Harness:
        harness = Harness(saved[0], block_size=BLOCK, **settings)
        for name in LONG:
            harness.adapters.load(name, saved[1][name])
        return harness

    return make


def cached(harness: Harness, names: Sequence[str]) -> list[int]:
    return [harness.answers[name].num_cached for name in names]


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("max_chunk", [2, 64])
def test_the_first_computes_and_the_others_find(
    make: Make, saved: tuple[Path, dict[str, Path]], kind: str, max_chunk: int
) -> None:
    harness = make(max_chunk=max_chunk)
    names = [f"{i}" for i in range(len(PROMPTS))]
    for name, prompt in zip(names, PROMPTS, strict=True):
        harness.submit(name, prompt, adapter=kind, salt=name)
    harness.run()
    assert cached(harness, names) == [0] + [LONG[kind]] * (len(names) - 1)
    expected = generate_alone(saved[0], saved[1][kind], PROMPTS, 8)
    assert [harness.answers[name].token_ids for name in names] == [t for t, _ in expected]
    harness.assert_clean()


def test_one_that_is_aborted_leaves_the_work_to_the_next(make: Make) -> None:
    harness = make(max_chunk=2)
    for name, prompt in zip("abc", PROMPTS, strict=False):
        harness.submit(name, prompt, adapter="soft")
    harness.run_step()
    assert harness.running == ["a"]
    harness.engine.abort("a")
    harness.run()
    assert cached(harness, "bc") == [0, LONG["soft"]]
    harness.assert_clean()


def test_one_that_is_preempted_keeps_nobody_waiting(make: Make) -> None:
    harness = make(max_chunk=2)
    for name, prompt in zip("abc", PROMPTS, strict=False):
        harness.submit(name, prompt, adapter="soft")
    harness.run_step()
    harness.preempt("a")
    harness.run()
    assert all(len(harness.answers[name].token_ids) == 8 for name in "abc")
    harness.assert_clean()


def test_nobody_waits_for_a_lower_class(make: Make) -> None:
    harness = make(max_chunk=2)
    harness.submit("low", PROMPTS[0], adapter="soft", priority=-1)
    harness.run_step()
    harness.submit("high", PROMPTS[1], adapter="soft", priority=1)
    harness.run_step()
    assert set(harness.running) == {"low", "high"}
    harness.run()
    harness.assert_clean()


@pytest.mark.parametrize("fields", [{"prefix_cache": False}, {}])
def test_without_the_cache_nobody_waits(make: Make, fields: dict[str, bool]) -> None:
    harness = make(max_chunk=2, prefix_cache=bool(fields))
    for name, prompt in zip("ab", PROMPTS, strict=False):
        harness.submit(name, prompt, adapter="soft", **fields)
    harness.run_step()
    assert harness.running == ["a", "b"]
    harness.run()
    assert cached(harness, "ab") == [0, 0]
    harness.assert_clean()
