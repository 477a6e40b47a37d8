"""The ways to adapt a frozen base: one module per method, all through PEFT.

`attach` wraps the base; `generator` and `learning_rate` answer what differs between methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polygraft.trainer.config import Lora, RunConfig, SoftPrompt

if TYPE_CHECKING:
    from peft import PeftModel

    from polygraft.adapters.prompt import PromptRecipe
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.generate import GreedyGenerator

SMALL_BASE_PARAMETERS = 20_000_000
LARGE_BASE_PARAMETERS = 100_000_000


def attach(base: FrozenBase, config: RunConfig, prompt_text: str) -> PeftModel:
    """The base wrapped with a fresh adapter; only the adapter's parameters require gradients.

    `prompt_text` is what a soft prompt starts from with `init: text`. Deterministic by
    `config.seed`.
    """
    if isinstance(config.method, Lora):
        from polygraft.trainer.methods.lora import attach_lora

        return attach_lora(base.model, config.method, seed=config.seed)
    from polygraft.trainer.methods.soft_prompt import attach_soft_prompt

    return attach_soft_prompt(
        base.model, base.tokenizer, config.method, seed=config.seed, prompt_text=prompt_text
    )


def learning_rate(method: Lora | SoftPrompt, base_parameters: int) -> float:
    """What `lr: auto` means, for a base of that many parameters.

    Small bases measured on builtin:nano (docs/training.md); large ones from PEFT's own
    method comparison. In between, the geometric middle.
    """
    if isinstance(method, SoftPrompt):
        small, large = 0.1 if method.virtual_tokens < 64 else 0.3, 3e-2
    else:
        small, large = 5e-3, 2e-4
    if base_parameters < SMALL_BASE_PARAMETERS:
        return small
    if base_parameters >= LARGE_BASE_PARAMETERS:
        return large
    return float(f"{(small * large) ** 0.5:.1e}")


def generator(
    base: FrozenBase, peft_model: PeftModel | None, recipe: PromptRecipe
) -> GreedyGenerator:
    """Greedy generation with the adapter as it is now (None: the base alone).

    Answers end where the recipe says, as they do on a server.
    """
    from polygraft.trainer.generate import GreedyGenerator

    assert recipe.defaults.max_output_tokens is not None  # build_recipe sets it
    soft_prompt, has_prefix = None, False
    model: Any = base.model if peft_model is None else peft_model
    if peft_model is not None and peft_model.active_peft_config.is_prompt_learning:
        has_prefix = peft_model.active_peft_config.peft_type == "PREFIX_TUNING"
        if not has_prefix:
            soft_prompt = peft_model.get_prompt(batch_size=1)[0].detach()
            model = peft_model.get_base_model()
    return GreedyGenerator(
        model=model,
        tokenizer=base.tokenizer,
        eos_token_ids=tuple(dict.fromkeys([*base.eos_token_ids, *recipe.stop_token_ids])),
        max_new_tokens=int(recipe.defaults.max_output_tokens),
        stop_sequences=recipe.stop_sequences,
        soft_prompt=soft_prompt,
        # Padding between a prefix and a prompt would push the prefix out of a sliding window.
        batch_rows=1 if has_prefix else 32,
    )
