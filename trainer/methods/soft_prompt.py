"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691) through PEFT.

The start is chosen here and not by PEFT, which would load a tokenizer by the path in the config
and would start random prompts at unit variance, far from every embedding the base knows.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, PromptTuningConfig, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polygraft.trainer.config import SoftPrompt
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods.peft_wrapping import wrap


def attach_soft_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: SoftPrompt,
    *,
    seed: int,
    prompt_text: str,
) -> PeftModel:
    """Put `virtual_tokens` trainable embeddings in front; deterministic by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    start = initial_prompt(model, tokenizer, method, generator, prompt_text)
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.virtual_tokens
    )
    peft_model = wrap(model, config)
    weight = peft_model.get_parameter(
        f"prompt_encoder.{peft_model.active_adapter}.embedding.weight"
    )
    with torch.no_grad():
        weight.copy_(start)
    return peft_model


@torch.no_grad()
def initial_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: SoftPrompt,
    generator: torch.Generator,
    prompt_text: str,
) -> torch.Tensor:
    """The start, [virtual_tokens, hidden], in the scale of what the first layer sees."""
    embed: Any = model.get_input_embeddings()
    device = embed.weight.device
    if method.init == "text":
        ids = tokenizer.encode(method.init_text or prompt_text, add_special_tokens=False)
        if not ids:
            raise RecipeError(
                "there is no text to start the soft prompt from.",
                item="method.init_text",
                hint="Give the instruction of the task, or init: vocab.",
            )
        tiled = (ids * (method.virtual_tokens // len(ids) + 1))[: method.virtual_tokens]
        return _embedded(embed, torch.tensor(tiled, device=device))
    if method.init == "vocab":
        special = set(tokenizer.all_special_ids)
        usable = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
        picks = torch.randint(len(usable), (method.virtual_tokens,), generator=generator)
        return _embedded(embed, usable[picks].to(device))
    known = _embedded(embed, torch.arange(len(tokenizer), device=device))
    noise = torch.randn(method.virtual_tokens, known.shape[1], generator=generator)
    return noise.to(device) * known.std()


def _embedded(embed: Any, ids: torch.Tensor) -> torch.Tensor:
    """Rows as the model sees them: through the module, since some scale inside it (Gemma)."""
    rows: torch.Tensor = embed(ids[None])[0]
    return rows.float()
