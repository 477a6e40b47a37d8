"""LoRA (Hu et al. 2021, arXiv:2106.09685) through PEFT, on any architecture's linear layers."""

from __future__ import annotations

import difflib

import torch
from peft import LoraConfig, PeftModel, TaskType
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from polygraft.trainer.config import Lora
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods.layers import ATTENTION, MLP, find_layers, layer_numbers
from polygraft.trainer.methods.peft_wrapping import wrap

_QUERY_VALUE = {"q_proj", "v_proj", "query", "value"}


def attach_lora(model: PreTrainedModel, method: Lora, *, seed: int) -> PeftModel:
    """Wrap `model` with a fresh LoRA: A random by `seed`, B zero, so nothing changes yet."""
    linear = linear_modules(model)
    targets = choose_targets(method, linear)
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=method.r,
        lora_alpha=method.alpha if method.alpha is not None else 2 * method.r,
        lora_dropout=method.dropout,
        target_modules=targets,
        use_rslora=method.rslora,
        use_dora=method.dora,
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        layers_to_transform=_layers(model, method),
        fan_in_fan_out=any(
            kind is Conv1D for name, kind in linear.items() if _ends_with(name, targets)
        ),
    )
    wrapped = wrap(model, config)
    if method.kernel == "fused":
        from polygraft.trainer.methods.fused import use_fused

        return use_fused(wrapped, method)
    return wrapped


def linear_modules(model: PreTrainedModel) -> dict[str, type[nn.Module]]:
    """Dotted name to class of every linear layer but the output head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def choose_targets(method: Lora, linear: dict[str, type[nn.Module]]) -> list[str]:
    """The last parts of the module names to adapt, sorted. Raises RecipeError when none match."""
    names = {name.rpartition(".")[2] for name in linear}
    if method.targets == "all-linear":
        return sorted(names)
    if method.targets in ("attention", "mlp"):
        pattern = ATTENTION if method.targets == "attention" else MLP
        # Two parts of the name: in GPT-2 both `attn.c_proj` and `mlp.c_proj` end with c_proj.
        found = {".".join(name.split(".")[-2:]) for name in linear if pattern.search(name)}
        return _found_or_refused(found, f"{method.targets} layers", names)
    if method.targets == "qv":
        return _found_or_refused(_QUERY_VALUE & names, "separate query and value layers", names)
    for target in method.targets:
        if not any(_ends_with(name, [target]) for name in linear):
            near = difflib.get_close_matches(target, sorted(names), n=1)
            raise RecipeError(
                f"the base has no linear layer {target!r}.",
                item="method.targets",
                hint=f"Did you mean {near[0]!r}?"
                if near
                else f"It has: {', '.join(sorted(names))}",
            )
    return sorted(method.targets)


def _layers(model: PreTrainedModel, method: Lora) -> list[int] | None:
    if method.layers is None:
        return None
    return layer_numbers(method.layers, len(find_layers(model)[1]))


def _found_or_refused(found: set[str], what: str, names: set[str]) -> list[str]:
    if found:
        return sorted(found)
    raise RecipeError(
        f"the base has no {what} that can be told by name.",
        item="method.targets",
        hint=f"List the layers yourself; it has: {', '.join(sorted(names))}",
    )


def _ends_with(name: str, targets: list[str]) -> bool:
    """PEFT's own rule: the whole name, or its end at a dot."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
