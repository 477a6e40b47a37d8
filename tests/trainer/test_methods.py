"""Which layers a LoRA takes, and where a soft prompt starts."""

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_llama
from transformers import PreTrainedTokenizerFast

from polygraft.trainer.config import Lora, SoftPrompt
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods import learning_rate
from polygraft.trainer.methods.lora import attach_lora, choose_targets, linear_modules
from polygraft.trainer.methods.soft_prompt import attach_soft_prompt, initial_prompt

LLAMA_LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", LLAMA_LAYERS),
        ("qv", ["q_proj", "v_proj"]),
        (
            "attention",
            ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"],
        ),
        (("up_proj", "layers.1.self_attn.q_proj"), ["layers.1.self_attn.q_proj", "up_proj"]),
    ],
)
def test_targets_name_layers_of_llama(targets: str | tuple[str, ...], expected: list[str]) -> None:
    method = Lora.model_validate({"targets": targets})
    assert choose_targets(method, linear_modules(tiny_llama())) == expected


def test_attention_of_gpt2_leaves_its_mlp_alone() -> None:
    model = attach_lora(tiny_gpt2(), Lora(targets="attention", r=2), seed=0)
    adapted = {name for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert len(adapted) == 4
    assert all(".attn.c_" in name for name in adapted)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Lora(targets=("q_prj",)), "no linear layer 'q_prj'. Did you mean 'q_proj'?"),
        (Lora(targets=("lm_head",)), "no linear layer 'lm_head'"),
    ],
)
def test_an_unknown_layer_is_refused(method: Lora, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        choose_targets(method, linear_modules(tiny_llama()))
    assert says in str(caught.value)


def test_query_and_value_of_a_merged_projection_are_refused() -> None:
    with pytest.raises(RecipeError, match="c_attn"):
        choose_targets(Lora(targets="qv"), linear_modules(tiny_gpt2()))


@torch.no_grad()
def test_a_fresh_lora_changes_nothing_and_repeats_by_seed() -> None:
    ids = torch.tensor([[1, 2, 3]])
    base = tiny_llama()(ids).logits
    first = attach_lora(tiny_llama(), Lora(dropout=0.5), seed=4).eval()
    assert torch.equal(first(input_ids=ids).logits, base)
    second = attach_lora(tiny_llama(), Lora(dropout=0.5), seed=4)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert first.active_peft_config.lora_alpha == 16
    trained = {name for name, p in first.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def start(method: SoftPrompt, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return initial_prompt(tiny_llama(), tokenizer, method, generator, "List.")


def test_a_soft_prompt_starts_from_the_tiled_text(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = start(SoftPrompt(virtual_tokens=7), tokenizer)
    ids = tokenizer.encode("List.List.")[:7]
    assert torch.equal(rows, tiny_llama().get_input_embeddings().weight[ids])


def test_a_soft_prompt_from_the_vocabulary_has_no_special_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = start(SoftPrompt(virtual_tokens=50, init="vocab"), tokenizer)
    weight = tiny_llama().get_input_embeddings().weight
    ids = torch.cdist(rows, weight).argmin(dim=1)
    assert torch.equal(rows, weight[ids])
    assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    assert not torch.equal(rows, start(SoftPrompt(virtual_tokens=50, init="vocab"), tokenizer, 1))


def test_a_random_soft_prompt_has_the_scale_of_the_embeddings(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = start(SoftPrompt(virtual_tokens=200, init="random"), tokenizer)
    assert float(rows.std()) == pytest.approx(0.1, rel=0.1)


def test_a_soft_prompt_needs_a_text_to_start_from(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RecipeError, match="init_text"):
        attach_soft_prompt(tiny_llama(), tokenizer, SoftPrompt(), seed=0, prompt_text="")


def test_automatic_rates_fall_with_the_size_of_the_base() -> None:
    assert learning_rate(Lora(), 1_000_000) == 5e-3
    assert learning_rate(Lora(), 50_000_000) == 1e-3
    assert learning_rate(Lora(), 7_000_000_000) == 2e-4
    assert learning_rate(SoftPrompt(), 1_000_000) == 0.1
