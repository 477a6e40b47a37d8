"""Training some or all of the base's own parameters. Only changed tensors are saved."""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from polygraft.trainer.config import Full, Selective
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods.adapted import ChangedModel
from polygraft.trainer.methods.layers import find_layers, layer_numbers


def attach_selective(model: PreTrainedModel, method: Selective | Full) -> ChangedModel:
    """Make the chosen parameters trainable. Raises RecipeError when there are none."""
    if model.dtype.itemsize < 4:
        raise RecipeError(
            f"{method.kind} fine-tuning in {model.dtype} would lose small updates.",
            item="base.dtype",
            hint="Set it to fp32.",
        )
    names = {name for name, _ in model.named_parameters()}
    trained = names if isinstance(method, Full) else _chosen(model, method, names)
    settings = {
        "peft_type": method.kind.upper(),
        **method.model_dump(mode="json", exclude={"fisher"}),
    }
    return ChangedModel(model, settings, trained)


def _chosen(model: PreTrainedModel, method: Selective, names: set[str]) -> set[str]:
    if method.params is not None:
        pattern = re.compile(method.params)
        found = {name for name in names if pattern.search(name)}
        if not found:
            some = ", ".join(sorted(names)[:5])
            raise RecipeError(
                f"no parameter matches {method.params!r}.",
                item="method.params",
                hint=f"The base has {some}, ...",
            )
        return found
    prefix, layers = find_layers(model)
    numbers = layer_numbers(method.layers, len(layers))
    return {
        name
        for name in names
        if name.startswith(tuple(f"{prefix}.{number}." for number in numbers))
    }
