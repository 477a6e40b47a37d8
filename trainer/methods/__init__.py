"""The ways to adapt a base: one module per method, through PEFT wherever it has the method.

`attach` wraps the base; `generator` and `learning_rate` answer what differs between methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polygraft.trainer.config import (
    Full,
    Houlsby,
    Lora,
    Method,
    Prefix,
    PTuning,
    RunConfig,
    Selective,
    SoftPrompt,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from polygraft.adapters.prompt import PromptRecipe
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.generate import GreedyGenerator
    from polygraft.trainer.methods.adapted import Adapted, AdaptedModel

SMALL_BASE_PARAMETERS = 20_000_000
LARGE_BASE_PARAMETERS = 100_000_000


AUTOMATIC_RATES: dict[str, tuple[float, float]] = {
    # kind: (base below 20 M parameters, from 100 M). The first are measured on builtin:nano for
    # lora and prompt, and tried in short runs for the others (docs/training.md); the second are
    # PEFT's published ones, where it has the method.
    "lora": (5e-3, 2e-4),
    "prompt": (0.1, 3e-2),
    "prefix": (0.1, 5e-3),
    "p_tuning": (2e-2, 1e-3),
    "houlsby": (1e-2, 1e-3),
    "selective": (2e-3, 2e-5),
    "full": (1e-3, 2e-5),
}


def attach(base: FrozenBase, config: RunConfig, prompt_text: str) -> Adapted:
    """The base wrapped with a fresh adapter; only the adapter's parameters require gradients.

    `prompt_text` is what a soft prompt starts from with `init: text`. Deterministic by
    `config.seed`.
    """
    method, seed = config.method, config.seed
    if isinstance(method, Lora):
        from polygraft.trainer.methods.lora import attach_lora

        return attach_lora(base.model, method, seed=seed)
    if isinstance(method, SoftPrompt):
        from polygraft.trainer.methods.soft_prompt import attach_soft_prompt

        return attach_soft_prompt(
            base.model, base.tokenizer, method, seed=seed, prompt_text=prompt_text
        )
    if isinstance(method, Prefix | PTuning):
        from polygraft.trainer.methods.prefix import attach_p_tuning, attach_prefix

        if isinstance(method, Prefix):
            return attach_prefix(base.model, method, seed=seed)
        return attach_p_tuning(base.model, method, seed=seed)
    return attach_unserved(base.model, method, seed=seed)


def attach_unserved(
    model: PreTrainedModel, method: Houlsby | Selective | Full, *, seed: int
) -> AdaptedModel:
    """The methods that PEFT does not have and no server computes yet."""
    if isinstance(method, Houlsby):
        from polygraft.trainer.methods.houlsby import HoulsbyModel

        return HoulsbyModel(model, method, seed)
    from polygraft.trainer.methods.selective import attach_selective

    return attach_selective(model, method)


def learning_rate(method: Method, base_parameters: int) -> float:
    """What `lr: auto` means, for a base of that many parameters.

    In between small and large bases, the geometric middle.
    """
    small, large = AUTOMATIC_RATES[method.kind]
    if isinstance(method, SoftPrompt) and method.virtual_tokens >= 64:
        small = 0.3
    if base_parameters < SMALL_BASE_PARAMETERS:
        return small
    if base_parameters >= LARGE_BASE_PARAMETERS:
        return large
    return float(f"{(small * large) ** 0.5:.1e}")


def generator(base: FrozenBase, adapted: Adapted | None, recipe: PromptRecipe) -> GreedyGenerator:
    """Greedy generation with the adapter as it is now (None: the base alone).

    Answers end where the recipe says, as they do on a server.
    """
    from polygraft.trainer.generate import GreedyGenerator

    assert recipe.defaults.max_output_tokens is not None  # build_recipe sets it
    from polygraft.trainer.methods.adapted import AdaptedModel

    soft_prompt, has_prefix = None, False
    model: Any = base.model if adapted is None else adapted
    if adapted is None or isinstance(adapted, AdaptedModel):
        pass
    elif adapted.active_peft_config.is_prompt_learning:
        has_prefix = adapted.active_peft_config.peft_type == "PREFIX_TUNING"
        if not has_prefix:
            soft_prompt = adapted.get_prompt(batch_size=1)[0].detach()
            model = adapted.get_base_model()
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
