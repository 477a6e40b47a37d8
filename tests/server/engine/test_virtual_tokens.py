"""Prefix tuning, its projection and p-tuning equal PEFT; a prefix is written, never computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Answer, Harness, random_prompts
from engine_support.peft_adapters import (
    NUM_PREFIX,
    Generated,
    generate_alone,
    generate_composed,
    save_adapters,
    save_virtual_adapters,
)
from tiny_models import byte_tokenizer, save_base
from tolerances import LOGITS_FP32

BLOCK = 16
NUM_TOKENS = 12
KINDS = ("p_tuning", "prefix", "projected")
WINDOWED = ("gemma2", "gemma3", "mistral")  # windows shorter than prefix and prompt together
FULL = ("llama", "qwen3", "gpt2", "phi3", "gpt_neox", "opt", "cohere")
PROMPTS = random_prompts(3, vocab=VOCAB, seed=4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A tiny llama and all adapters for it."""
    return _save("llama", tmp_path_factory.mktemp("virtual"))


def _save(architecture: str, directory: Path) -> tuple[Path, dict[str, Path]]:
    case = SERVED[architecture]
    base = save_base(directory / "base", case.build(), byte_tokenizer())
    loras = save_adapters(base, directory, case.names)
    return base, loras | save_virtual_adapters(base, directory)


def _harness(base: Path, adapters: dict[str, Path], **settings: object) -> Harness:
    harness = Harness(base, **settings)
    for name, directory in adapters.items():
        harness.adapters.load(name, directory)
    return harness


def assert_equal(answer: Answer, expected: Generated) -> None:
    assert answer.token_ids == expected[0]
    assert (torch.stack(answer.logits) - expected[1]).abs().max() <= LOGITS_FP32


@pytest.mark.parametrize("architecture", WINDOWED + FULL)
def test_virtual_tokens_equal_peft(architecture: str, tmp_path: Path) -> None:
    base, adapters = _save(architecture, tmp_path)
    harness = _harness(base, adapters, max_chunk=24, max_batch_tokens=64)
    for i, prompt in enumerate(PROMPTS):
        for kind in (*KINDS, "lora4"):
            harness.submit(f"{kind}{i}", prompt, adapter=kind, max_output_tokens=NUM_TOKENS)
            harness.run_step()
        both = {"prefix": 1.0, "lora4": -0.6}
        harness.submit(f"both{i}", prompt, adapter=both, max_output_tokens=NUM_TOKENS)
    harness.run()
    harness.assert_clean()
    plain = generate_alone(base, None, PROMPTS, 1)
    for kind in KINDS:
        expected = generate_alone(base, adapters[kind], PROMPTS, NUM_TOKENS)
        for i in range(len(PROMPTS)):
            assert_equal(harness.answers[f"{kind}{i}"], expected[i])
        # Not with every prompt: behind a short window the last of a long one does not see it.
        effect = [(a[0] - b[0]).abs().max() for (_, a), (_, b) in zip(plain, expected, strict=True)]
        assert max(effect) > 0.003, f"{kind} changed nothing: the test proves nothing"
    for i, prompt in enumerate(PROMPTS):
        lora = {adapters["lora4"]: -0.6}
        expected_both = generate_composed(base, lora, prompt, NUM_TOKENS, prefix=adapters["prefix"])
        assert_equal(harness.answers[f"both{i}"], expected_both)


def test_a_prefix_survives_preemption(saved: tuple[Path, dict[str, Path]]) -> None:
    base, adapters = saved
    harness = _harness(base, adapters, kv_bytes=14 * 6144, max_context=128, prefix_cache=False)
    for i, prompt in enumerate(PROMPTS):
        harness.submit(str(i), prompt, adapter="prefix", max_output_tokens=40)
    harness.run()
    harness.assert_clean()
    assert harness.engine.stats().preemptions > 0
    for i, expected in enumerate(generate_alone(base, adapters["prefix"], PROMPTS, 40)):
        assert harness.answers[str(i)].token_ids == expected[0]


def test_full_blocks_of_a_prefix_are_written_once_for_all_tenants(
    saved: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = _harness(*saved)
    written: list[int] = []
    write = harness.engine._runner.cache.write_layers

    def counting(cells: object, kv: torch.Tensor) -> None:
        written.append(kv.shape[3])
        write(cells, kv)  # type: ignore[arg-type]

    monkeypatch.setattr(harness.engine._runner.cache, "write_layers", counting)
    for i, salt in enumerate(("", "a", "b")):
        harness.submit(f"prefix{i}", PROMPTS[i], adapter="prefix", salt=salt)
        harness.run()
    assert written == [NUM_PREFIX, NUM_PREFIX % BLOCK, NUM_PREFIX % BLOCK]
    assert [harness.answers[f"prefix{i}"].num_cached for i in range(3)] == [0, BLOCK, BLOCK]


def test_a_prefix_is_not_computed(saved: tuple[Path, dict[str, Path]]) -> None:
    """Its virtual tokens take no part of the step: a chunk of one token is enough to begin."""
    harness = _harness(*saved, max_chunk=1)
    harness.submit("r", [5], adapter="prefix", max_output_tokens=1)
    assert harness.run_step()
    assert harness.answers["r"].is_done


def test_scores_behind_a_prefix_equal_peft(saved: tuple[Path, dict[str, Path]]) -> None:
    base, adapters = saved
    harness = _harness(base, adapters)
    prompt = PROMPTS[0]
    harness.submit("s", prompt, adapter="prefix", max_output_tokens=0, score_from=1)
    harness.run()
    expected = []
    for end in range(1, len(prompt)):
        logits = generate_alone(base, adapters["prefix"], [prompt[:end]], 1)[0][1][0]
        expected.append(float(logits.log_softmax(-1)[prompt[end]]))
    scored = [token.logprob for token in harness.answers["s"].prompt_logprobs]
    assert scored == pytest.approx(expected, abs=1e-4)


SMALL = {"block_size": 4, "kv_bytes": 64 * 4 * 384, "max_context": 128}  # 64 blocks of 4 tokens


def _num_cached(harness: Harness, name: str, prompt: list[int], adapter: str | None) -> int:
    harness.submit(name, prompt, adapter=adapter, max_output_tokens=2)
    harness.run()
    return harness.answers[name].num_cached


def _flood(harness: Harness, name: str) -> None:
    """Other requests, one after another, that push every ordinary block out."""
    for i, prompt in enumerate(random_prompts(8, vocab=VOCAB, seed=len(name))):
        _num_cached(harness, f"{name} {i}", (prompt * 60)[:60], None)


@pytest.mark.parametrize("adapter", ["soft", "prefix", "p_tuning"])
def test_virtual_tokens_stay_in_the_cache_while_their_version_is_resident(
    saved: tuple[Path, dict[str, Path]], adapter: str
) -> None:
    base, adapters = saved
    harness = _harness(base, adapters, **SMALL)
    full = harness.adapters.virtual[adapter] // 4 * 4
    assert _num_cached(harness, "first", PROMPTS[0], adapter) == 0
    assert _num_cached(harness, "ordinary", PROMPTS[1], "lora4") == 0
    _flood(harness, "one")
    assert _num_cached(harness, "ordinary again", PROMPTS[1], "lora4") == 0
    assert _num_cached(harness, "another", PROMPTS[2], adapter) == full
    _flood(harness, "two and more")
    assert _num_cached(harness, "yet another", PROMPTS[1], adapter) == full
    harness.engine.bank.free(adapter)
    _flood(harness, "after it was unloaded")
    harness.adapters.load(adapter, adapters[adapter])
    assert _num_cached(harness, "loaded again", PROMPTS[0], adapter) == 0
    harness.assert_clean()


def test_virtual_tokens_make_room_when_nothing_else_can(
    saved: tuple[Path, dict[str, Path]],
) -> None:
    base, adapters = saved
    harness = _harness(base, adapters, **{**SMALL, "kv_bytes": 32 * 4 * 384})
    _num_cached(harness, "first", PROMPTS[0], "prefix")
    harness.submit("all", [7] * 100, max_output_tokens=28)  # needs 32 blocks
    harness.run()
    assert harness.engine.stats().preemptions == 0
    assert _num_cached(harness, "again", PROMPTS[0], "prefix") == 0
    assert harness.answers["again"].token_ids == harness.answers["first"].token_ids
