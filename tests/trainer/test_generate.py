"""Greedy generation: a row of a batch is the row alone."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import EOS, tiny_gpt2, tiny_llama
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polygraft.trainer.generate import GreedyGenerator

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
