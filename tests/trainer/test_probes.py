"""Probes hold what PEFT computes: compared with a plain forward and transformers' generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_models import tiny_llama

from polygraft.trainer.probes import choose_prompts, make_probes

CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5, task_type="CAUSAL_LM"
    ),
    "soft": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}
PROMPTS = [list(range(1 + i, 14 + 2 * i)) for i in range(10)]


def peft_model(kind: str) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), CONFIGS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.train()  # as after training: dropout must not reach the probes


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_they_hold_what_the_adapter_and_the_base_compute(kind: str) -> None:
    model = peft_model(kind)
    probes = make_probes(model, PROMPTS, context_length=256)
    assert model.training
    assert probes.count == 8
    model.train(False)
    base = tiny_llama()
    for index in (0, 7):
        ids = torch.tensor([probes.prompt(index)])
        expected = model(input_ids=ids).logits[0, -8:].log_softmax(-1)
        alone = base(input_ids=ids).logits[0, -8:].log_softmax(-1)
        top = expected.topk(32)
        assert torch.equal(top.indices.int(), probes.top_ids[index])
        assert torch.allclose(top.values, probes.top_logprobs[index], atol=1e-5)
        found = probes.base_top_logprobs[index]
        assert torch.allclose(alone.gather(-1, top.indices), found, atol=1e-5)
        assert (found - probes.top_logprobs[index]).abs().max() > 0.1, "an adapter without effect"


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_they_go_on_as_generate_does(kind: str) -> None:
    model = peft_model(kind)
    probes = make_probes(model, PROMPTS, context_length=256)
    model.train(False)
    for index in (0, 3):
        ids = torch.tensor([probes.prompt(index)])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert output.sequences[0, -16:].tolist() == probes.greedy_ids[index].tolist()
        logits = torch.stack([step[0] for step in output.logits])
        first, second = logits.topk(2).values.unbind(-1)
        assert torch.allclose(first - second, probes.greedy_margin[index], atol=1e-4)


def test_prompts_lie_evenly_and_differ() -> None:
    examples = [[i] * 10 for i in range(100)]
    assert [ids[0] for ids in choose_prompts(examples, longest=64)] == list(range(0, 96, 12))
    assert choose_prompts([[1] * 9, [1] * 9, []], longest=64) == [[1] * 9]


def test_a_short_prompt_is_said_again_and_of_a_long_one_the_end_is_taken() -> None:
    assert choose_prompts([[1, 2, 3]], longest=64) == [[1, 2, 3] * 3]
    assert choose_prompts([list(range(100))], longest=10) == [list(range(90, 100))]
    with pytest.raises(ValueError, match="room for 7"):
        choose_prompts([[1]], longest=7)
