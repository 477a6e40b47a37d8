"""Random adapters made and saved by peft itself, and their solo generation by peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

NUM_VIRTUAL = 7
NUM_PREFIX = 21  # more than a block, and not a whole number of them
Generated = tuple[list[int], Tensor]  # token ids, logits [num_tokens, vocab_size]


@dataclass(frozen=True)
class Architecture:
    """How the projections of one architecture are called."""

    attention: str  # a projection of the attention, whose rank and alpha the patterns change
    mlp: str
    all_linear: str = "all-linear"  # PEFT's word, or a pattern where it would take experts too


def linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def save_adapters(base: Path, directory: Path, names: Architecture) -> dict[str, Path]:
    """The four adapters of the exactness matrix, with weights large enough to change tokens."""
    configs: dict[str, PeftConfig] = {
        "lora4": LoraConfig(r=4, lora_alpha=8, target_modules=names.all_linear, task_type=_TASK),
        "rslora8": LoraConfig(
            r=8, lora_alpha=6, use_rslora=True, target_modules=[names.attention], task_type=_TASK
        ),
        "patterns16": LoraConfig(
            r=16,
            lora_alpha=16,
            target_modules=[names.attention, names.mlp],
            rank_pattern={names.mlp: 5},
            alpha_pattern={names.attention: 24},
            task_type=_TASK,
        ),
        "soft": PromptTuningConfig(num_virtual_tokens=NUM_VIRTUAL, task_type=_TASK),
    }
    return _save(base, directory, configs)


def save_virtual_adapters(base: Path, directory: Path) -> dict[str, Path]:
    """Those that put virtual tokens in front, besides prompt tuning."""
    configs: dict[str, PeftConfig] = {
        "p_tuning": PromptEncoderConfig(
            num_virtual_tokens=NUM_VIRTUAL, encoder_hidden_size=16, task_type=_TASK
        ),
        "prefix": PrefixTuningConfig(num_virtual_tokens=NUM_PREFIX, task_type=_TASK),
        "projected": PrefixTuningConfig(
            num_virtual_tokens=NUM_VIRTUAL,
            prefix_projection=True,
            encoder_hidden_size=16,
            task_type=_TASK,
        ),
    }
    return _save(base, directory, configs)


def _save(base: Path, directory: Path, configs: Mapping[str, PeftConfig]) -> dict[str, Path]:
    saved = {}
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        _randomise(model)
        saved[name] = directory / name
        model.save_pretrained(saved[name], save_embedding_layers=False)
    return saved


_TASK = TaskType.CAUSAL_LM


def _randomise(model: nn.Module) -> None:
    """Freshly made LoRA is the identity (B = 0); make A and B matter."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5 / parameter.shape[1] ** 0.5)
        elif "prompt_" in name:
            nn.init.normal_(parameter, std=0.2)


@torch.inference_mode()
def generate_alone(
    base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[Generated]:
    """PEFT's own greedy generation of each prompt alone in float32.

    Returns (token ids, logits [num_tokens, vocab_size]) per prompt.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.train(False)
    return [_generate(model, num_tokens, input_ids=torch.tensor([prompt])) for prompt in prompts]


@torch.inference_mode()
def generate_composed(
    base: Path,
    loras: Mapping[Path, float],
    prompt: Sequence[int],
    num_tokens: int,
    *,
    soft_prompt: Path | None = None,
    prefix: Path | None = None,
) -> Generated:
    """As `generate_alone`, with all `loras` active, each scaling multiplied by its weight.

    PEFT has no words for LoRAs behind virtual tokens: the base with its LoRA layers in it is fed
    `[prompt; embedding(tokens)]`, or wrapped once more for the prefix.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = _with_loras(model, loras)
    if prefix is not None:
        model = PeftModel.from_pretrained(model.get_base_model(), prefix)
    model.train(False)
    ids = torch.tensor([prompt])
    if soft_prompt is None:
        return _generate(model, num_tokens, input_ids=ids)
    rows = load_file(soft_prompt / "adapter_model.safetensors")["prompt_embeddings"]
    embedded = model.get_input_embeddings()(ids)
    return _generate(model, num_tokens, inputs_embeds=torch.cat([rows[None], embedded], dim=1))


def _with_loras(model: PreTrainedModel, loras: Mapping[Path, float]) -> PeftModel:
    """The PEFT model with several LoRAs active at once."""
    first, *others = loras
    peft = PeftModel.from_pretrained(model, first, adapter_name=first.name)
    for path in others:
        peft.load_adapter(path, adapter_name=path.name)
    peft.base_model.set_adapter([path.name for path in loras])
    for module in peft.modules():
        if isinstance(module, LoraLayer):
            for path, weight in loras.items():
                if path.name in module.scaling:
                    module.scaling[path.name] *= weight
    return peft


def _generate(model: nn.Module, num_tokens: int, **inputs: Tensor) -> Generated:
    length = next(iter(inputs.values())).shape[1]
    output = model.generate(  # type: ignore[operator]
        **inputs,
        attention_mask=torch.ones(1, length, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens = output.sequences[0, -num_tokens:].tolist()
    return tokens, torch.stack([step[0] for step in output.logits]).float()
