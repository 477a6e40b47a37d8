"""Lengths at which something begins or ends: one token, whole blocks, the last position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Answer, Harness
from engine_support.peft_adapters import Generated, generate_alone
from engine_support.solo import BLOCK, Solo
from tiny_models import byte_tokenizer, save_base
from tolerances import LOGITS_FP32

from polygraft.adapters.errors import InvalidRequest
from polygraft.kernels.attention import LONG_CONTEXT

SoloFor = Callable[[str], Solo]


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
    return drawn


def expected(
    alone: Solo, adapter: str | None, prompts: list[list[int]], count: int
) -> list[Generated]:
    path: Path | None = alone.adapters[adapter] if adapter else None
    return generate_alone(alone.base, path, prompts, count)


def assert_equal(answer: Answer, peft: Generated) -> None:
    assert answer.error is None
    assert answer.token_ids == peft[0]
    assert (torch.stack(answer.logits) - peft[1]).abs().max() <= LOGITS_FP32


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_prompt_of_one_token(architecture: str, solo: SoloFor) -> None:
    """With every adapter, in the narrowest steps and the smallest blocks."""
    alone = solo(architecture)
    kinds = [None, *alone.adapters]
    peft = {kind: expected(alone, kind, [[5]], 4)[0] for kind in kinds}
    for settings in (
        {},
        {"max_chunk": 1},
        {"max_batch_tokens": 1, "max_running": 1},
        {"block_size": 1},
        {"prefix_cache": False},
    ):
        harness = alone.harness(**settings)
        for kind in kinds:
            harness.submit(f"{kind}", [5], adapter=kind, max_output_tokens=4)
        harness.run()
        harness.assert_clean()
        for kind in kinds:
            assert_equal(harness.answers[f"{kind}"], peft[kind])


@pytest.mark.parametrize("adapter", [None, "lora4", "soft", "prefix"])
@pytest.mark.parametrize("context", [61, 64])
@pytest.mark.parametrize("output", [1, 20])
def test_requests_that_fill_the_context_to_its_last_position(
    adapter: str | None, context: int, output: int, solo: SoloFor
) -> None:
    """In a pool that holds one of them: they run one after the other, and none a token longer."""
    alone = solo("llama")
    blocks = -(-context // BLOCK)
    harness = alone.harness(max_context=context, kv_bytes=alone.block_bytes * blocks)
    assert harness.engine.context_length == context
    virtual = harness.adapters.virtual[adapter] if adapter else 0
    prompts = [prompt(context - virtual - output, seed) for seed in range(3)]
    for i, ids in enumerate(prompts):
        harness.submit(str(i), ids, adapter=adapter, max_output_tokens=output)
    with pytest.raises(InvalidRequest, match=f"{context + 1}, more than"):
        harness.submit("longer", [*prompts[0], 1], adapter=adapter, max_output_tokens=output)
    harness.run()
    harness.assert_clean()
    for i, peft in enumerate(expected(alone, adapter, prompts, output)):
        assert_equal(harness.answers[str(i)], peft)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33])
def test_prompts_and_answers_that_end_with_a_block(length: int, solo: SoloFor) -> None:
    """Computed, cached, and cached while another is computed; outputs of one and two blocks."""
    alone = solo("llama")
    harness = alone.harness()
    peft = expected(alone, None, [prompt(length)], 2 * BLOCK + 1)[0]
    for output in (BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1):
        for name in ("first", "second"):
            harness.submit(f"{name}{output}", prompt(length), max_output_tokens=output)
        harness.run()
        for name in ("first", "second"):
            answer = harness.answers[f"{name}{output}"]
            assert_equal(answer, (peft[0][:output], peft[1][:output]))
    turn = [*prompt(length), *peft[0]]  # the next turn of the conversation
    harness.submit("turn", turn, max_output_tokens=2)
    harness.run()
    assert harness.answers["turn"].num_cached == (len(turn) - 1) // BLOCK * BLOCK
    assert_equal(harness.answers["turn"], expected(alone, None, [turn], 2)[0])


def test_scores_of_the_shortest_prompts(solo: SoloFor) -> None:
    alone = solo("llama")
    harness: Harness = alone.harness()
    for length in (2, BLOCK, BLOCK + 1):
        name, ids = f"score{length}", prompt(length)
        harness.submit(name, ids, max_output_tokens=0, score_from=length - 1)
        harness.run()
        [scored] = harness.answers[name].prompt_logprobs
        logits = expected(alone, None, [ids[:-1]], 1)[0][1][0]
        assert scored.logprob == pytest.approx(float(logits.log_softmax(-1)[ids[-1]]), abs=1e-4)


STATIC_ROPE: dict[str, dict[str, object]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "gpt_oss"])
def test_contexts_too_long_to_be_padded_together(architecture: str, tmp_path: Path) -> None:
    assert_long_is_exact(architecture, tmp_path)


@pytest.mark.parametrize("rope", STATIC_ROPE)
def test_scaled_positions(rope: str, tmp_path: Path) -> None:
    scaling = {"rope_type": rope, "rope_theta": 10000.0, **STATIC_ROPE[rope]}
    assert_long_is_exact("llama", tmp_path, rope_parameters=scaling)


def assert_long_is_exact(architecture: str, directory: Path, **changes: object) -> None:
    """Prompts of up to 900 tokens, joining in turn, against PEFT alone."""
    model = SERVED[architecture].build()
    for name, value in {"max_position_embeddings": 1024, **changes}.items():
        setattr(model.config, name, value)
    base = save_base(directory / "base", model, byte_tokenizer())
    harness = Harness(base, kv_bytes=1 << 25)
    prompts = [prompt(LONG_CONTEXT + extra) for extra in (388, 1, -9)]
    for i, ids in enumerate(prompts):
        harness.submit(str(i), ids, max_output_tokens=12)
        harness.run_step()
    harness.run()
    for i, peft in enumerate(generate_alone(base, None, prompts, 12)):
        assert_equal(harness.answers[str(i)], peft)
