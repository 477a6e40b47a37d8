"""Greedy generation: a row of a batch is the row alone."""

from collections.abc import Callable

import pytest
import torch
from adapter_support.directories import FINGERPRINT
from peft import PrefixTuningConfig, get_peft_model
from tiny_models import EOS, VOCAB_SIZE, tiny_gpt2, tiny_llama
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from polygraft.adapters.prompt import PromptRecipe
from polygraft.trainer.frozen_base import FrozenBase
from polygraft.trainer.generate import GreedyGenerator
from polygraft.trainer.methods import generator

PROMPTS = [f"{'ab' * n}:" for n in (1, 9, 3, 14, 2, 6, 20, 5)]


def greedy_alone(
    model: PreTrainedModel, soft_prompt: torch.Tensor | None, ids: list[int], count: int
) -> list[int]:
    """The definition: one row, no padding, one full forward per token."""
    embed = model.get_input_embeddings()
    made: list[int] = []
    for _ in range(count):
        rows = embed(torch.tensor([ids + made]))
        if soft_prompt is not None:
            rows = torch.cat([soft_prompt[None], rows], dim=1)
        made.append(int(model(inputs_embeds=rows).logits[0, -1].argmax()))
        if made[-1] == EOS:
            return made[:-1]
    return made


@pytest.mark.parametrize("virtual_tokens", [0, 5])
@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
@torch.no_grad()
def test_a_batch_of_eight_answers_as_eight_batches_of_one(
    make_model: Callable[[], PreTrainedModel],
    virtual_tokens: int,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = make_model()
    torch.manual_seed(3)
    soft_prompt = torch.randn(virtual_tokens, 64) * 0.5 if virtual_tokens else None
    generate = GreedyGenerator(model, tokenizer, (EOS,), 12, soft_prompt=soft_prompt)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    answers = generate(prompts)
    expected = [greedy_alone(model, soft_prompt, prompt, 12) for prompt in prompts]
    assert [answer.token_ids for answer in answers] == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_an_answer_ends_before_the_end_token_and_the_stop_sequence(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    generate = GreedyGenerator(None, tokenizer, (EOS,), 8, stop_sequences=("\n", "END"))
    text = tokenizer.encode("yes END no")
    assert generate._answer([*text, EOS, 5]).text == "yes "
    assert generate._answer([*tokenizer.encode("yes"), EOS, EOS]).text == "yes"
    unfinished = generate._answer(tokenizer.encode("yes"))
    assert (unfinished.text, unfinished.stopped) == ("yes", False)


def test_generation_leaves_the_mode_of_the_model_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_llama()
    model.train()
    GreedyGenerator(model, tokenizer, (EOS,), 1)([[1, 2]])
    assert model.training


def test_a_prefix_is_seen_through_a_sliding_window_in_a_batch_too(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Padding between prefix and prompt would push the prefix out of the window."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=12,
        initializer_range=0.1,
    )
    model = get_peft_model(
        MistralForCausalLM(config),
        PrefixTuningConfig(num_virtual_tokens=6, task_type="CAUSAL_LM"),
    )
    base = FrozenBase("tiny", model.get_base_model(), tokenizer, FINGERPRINT, (EOS,))
    recipe = PromptRecipe(segments=[{"var": "x"}], defaults={"max_output_tokens": "8"})
    generate = generator(base, model, recipe)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    alone = [generate([prompt])[0].token_ids for prompt in prompts]
    assert [answer.token_ids for answer in generate(prompts)] == alone
    assert alone != [answer.token_ids for answer in generator(base, None, recipe)(prompts)]
