"""Blocks behind the window of a model whose every layer has one are given back as it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Harness, random_prompts
from engine_support.stepping import BLOCK, Stepper
from tiny_models import byte_tokenizer, save_base
from transformers import AutoModelForCausalLM

WINDOW = 20  # of the tiny mistral
NUM_TOKENS = 120


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mistral")
    return save_base(directory, SERVED["mistral"].build(), byte_tokenizer())


def generate(base: Path, prompt: list[int]) -> list[int]:
    """Greedy tokens of transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.train(False)
    with torch.inference_mode():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = ids[0, len(prompt) :].tolist()
    return tokens


def held(harness: Harness, request_id: str) -> int:
    return len(harness.engine._scheduler.running[request_id].held_blocks)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_tokens_are_those_of_transformers_and_few_blocks_are_held(
    mistral: Path, prefix_cache: bool
) -> None:
    harness = Harness(mistral, block_size=4, prefix_cache=prefix_cache)
    prompts = random_prompts(3, vocab=VOCAB, seed=21)
    for i, prompt in enumerate(prompts):
        harness.submit(str(i), prompt, max_output_tokens=NUM_TOKENS)
    for _ in range(100):
        harness.run_step()
    unread = harness.engine._scheduler.running["0"].num_dropped
    assert unread >= (len(prompts[0]) + 90 - WINDOW) // 4 - 1
    harness.run()
    harness.assert_clean()
    for i, prompt in enumerate(prompts):
        assert harness.answers[str(i)].token_ids == generate(mistral, prompt)


def test_a_prefix_is_found_again_after_its_blocks_were_given_up(mistral: Path) -> None:
    harness = Harness(mistral, block_size=4)
    [prompt] = random_prompts(1, vocab=VOCAB, seed=22)
    prompt *= 2
    harness.submit("first", prompt, max_output_tokens=NUM_TOKENS)
    for _ in range(60):
        harness.run_step()
    harness.submit("second", prompt, max_output_tokens=NUM_TOKENS)
    harness.run()
    harness.assert_clean()
    expected = generate(mistral, prompt)
    assert harness.answers["second"].num_cached == (len(prompt) - 1) // 4 * 4
    assert harness.answers["first"].token_ids == expected
    assert harness.answers["second"].token_ids == expected


def test_preempted_while_most_of_it_was_given_up_it_is_computed_again(mistral: Path) -> None:
    harness = Harness(mistral, block_size=4, prefix_cache=False)
    [prompt] = random_prompts(1, vocab=VOCAB, seed=23)
    harness.submit("r", prompt, max_output_tokens=NUM_TOKENS)
    for _ in range(80):
        harness.run_step()
    harness.preempt("r")
    harness.run()
    harness.assert_clean()
    assert harness.answers["r"].token_ids == generate(mistral, prompt)


def test_a_model_with_full_layers_too_keeps_all_blocks(tmp_path: Path) -> None:
    harness = Harness(save_base(tmp_path, SERVED["gemma3"].build(), byte_tokenizer()))
    assert harness.engine._runner.cache.window is None


def test_many_more_sequences_fit_than_whole_contexts_would() -> None:
    stepper = Stepper(40, window=8, max_running=8)  # 160 cells; each sequence passes 100 positions
    for i in range(4):
        stepper.submit(str(i), tuple(range(100 * i, 100 * i + 10)), 90)
    stepper.run()
    stepper.assert_clean()
    assert stepper.scheduler.num_preemptions == 0
    whole = Stepper(40, max_running=8)
    for i in range(4):
        whole.submit(str(i), tuple(range(100 * i, 100 * i + 10)), 90)
    whole.run()
    assert whole.scheduler.num_preemptions > 0


@pytest.mark.parametrize("window", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_no_block_is_given_up_that_a_later_position_sees(window: int, prefix_cache: bool) -> None:
    stepper = Stepper(30, window=window, max_running=3, prefix_cache=prefix_cache)
    for i in range(6):
        stepper.submit(str(i), 7 + 5 * (i % 3), 40)
    stepper.run()  # every step checks that what is read is the sequence's own
    stepper.assert_clean()
