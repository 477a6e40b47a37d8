"""Finds the parts of a base that methods name: its layers, their attention and their MLP."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from polygraft.trainer.errors import RecipeError

ATTENTION = re.compile(r"(^|[._])(self_)?attn|attention", re.IGNORECASE)
MLP = re.compile(r"(^|[._])(mlp|ffn|feed_forward|ff)($|[._])", re.IGNORECASE)


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Dotted name and list of the decoder's layers. Raises RecipeError when there is none."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise RecipeError("the base has no list of layers that can be told.", item="method.layers")


def layer_numbers(wanted: Sequence[int] | None, count: int) -> list[int]:
    """Layers from 0; negative ones count from the end, None is all. Raises RecipeError."""
    if wanted is None:
        return list(range(count))
    for number in wanted:
        if not -count <= number < count:
            raise RecipeError(
                f"the base has {count} layers, 0 to {count - 1} or -{count} to -1.",
                item="method.layers",
                found=number,
                hint=f"Found {number}.",
            )
    return sorted({number % count for number in wanted})


def part_of(layer: nn.Module, pattern: re.Pattern[str], what: str) -> nn.Module:
    """The one child of a layer whose name says what it is. Raises RecipeError."""
    found = [
        module
        for name, module in layer.named_children()
        if pattern.search(name) and "norm" not in name.lower()
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(name for name, _ in layer.named_children())
    raise RecipeError(
        f"the {what} of a layer cannot be told by name; a layer has {names}.", item="method.where"
    )
