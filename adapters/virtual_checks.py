"""Shapes of soft prompts and prefixes against the base, from the header alone.

Both are one tensor with a row for every virtual token: of a soft prompt the embedding, of a prefix
the keys and values of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from polygraft.adapters.change_checks import incompatible, invalid
from polygraft.adapters.checks import PROMPT_TENSOR, leftover
from polygraft.adapters.config import PrefixSettings, Problems, PromptSettings
from polygraft.adapters.errors import AdapterUnsupported, raise_all
from polygraft.adapters.files import WEIGHTS_FILE
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.safetensors_header import TensorEntry

_OTHER_BASE = "It was trained on another base."


def check_prompt(
    settings: PromptSettings,
    entries: Sequence[TensorEntry],
    geometry: BaseGeometry,
    limits: AdapterLimits,
) -> None:
    """The file must be one tensor [num_virtual_tokens, hidden_size] within the limits."""
    width = geometry.hidden_size
    tensor, problems = _only_tensor(entries, settings.num_virtual_tokens, width)
    if tensor is not None:
        found = tensor.shape[1]
        if found != width or settings.token_dim not in (None, found):
            problems.append(
                incompatible(
                    f"width {found} (token_dim {settings.token_dim}) is not the hidden size "
                    f"{width} of {geometry.name}.",
                    item=PROMPT_TENSOR,
                    found=found,
                    allowed=width,
                    hint=_OTHER_BASE,
                )
            )
        problems.extend(_check_count(tensor.shape[0], geometry, limits))
    raise_all(problems)


def check_prefix(
    settings: PrefixSettings,
    entries: Sequence[TensorEntry],
    geometry: BaseGeometry,
    limits: AdapterLimits,
) -> None:
    """The file must be one tensor [num_virtual_tokens, 2 * num_layers * token_dim] that fits the
    keys and values of every layer of the base."""
    width = 2 * settings.num_layers * settings.token_dim
    tensor, problems = _only_tensor(entries, settings.num_virtual_tokens, width)
    if tensor is not None:
        if tensor.shape[1] != width:
            problems.append(
                invalid(
                    f"width {tensor.shape[1]} is not 2 * num_layers * token_dim = {width} of the "
                    "config.",
                    item=PROMPT_TENSOR,
                    found=tensor.shape[1],
                    allowed=width,
                    hint="Save it again with save_pretrained().",
                )
            )
        if settings.token_dim % settings.kv_heads:
            problems.append(
                invalid(
                    f"token_dim {settings.token_dim} is not divisible by num_attention_heads "
                    f"{settings.kv_heads} of the config.",
                    item="token_dim",
                    found=settings.token_dim,
                    allowed=f"a multiple of {settings.kv_heads}",
                )
            )
        problems.extend(_check_layers(settings, geometry))
        problems.extend(_check_count(tensor.shape[0], geometry, limits))
    raise_all(problems)


def _only_tensor(
    entries: Sequence[TensorEntry], rows: int, width: int
) -> tuple[TensorEntry | None, Problems]:
    """The one tensor of the file if it has `rows` rows, and what is wrong so far."""
    problems: Problems = [
        leftover(entry.name, False) for entry in entries if entry.name != PROMPT_TENSOR
    ]
    tensor = next((entry for entry in entries if entry.name == PROMPT_TENSOR), None)
    if tensor is None:
        problems.insert(0, invalid("the tensor is missing.", item=PROMPT_TENSOR))
    elif len(tensor.shape) != 2 or tensor.shape[0] != rows:
        problems.append(
            invalid(
                f"shape {list(tensor.shape)} does not fit num_virtual_tokens = {rows} of the "
                "config.",
                item=PROMPT_TENSOR,
                found=list(tensor.shape),
                allowed=[rows, width],
            )
        )
        tensor = None
    return tensor, problems


def _check_layers(settings: PrefixSettings, geometry: BaseGeometry) -> Problems:
    if settings.num_layers != geometry.num_layers:
        return [
            incompatible(
                f"num_layers = {settings.num_layers}, but {geometry.name} has "
                f"{geometry.num_layers}.",
                item="num_layers",
                found=settings.num_layers,
                allowed=geometry.num_layers,
                hint=_OTHER_BASE,
            )
        ]
    shapes = set(geometry.kv)
    if len(shapes) > 1 or any(kv.key_dim != kv.value_dim for kv in shapes):
        return [
            AdapterUnsupported(
                f"the layers of {geometry.name} keep keys and values of different shapes, and one "
                "tensor for all of them cannot say which layer takes what.",
                file=WEIGHTS_FILE,
                item=PROMPT_TENSOR,
                hint="Retrain as LoRA or prompt tuning.",
            )
        ]
    for kv in shapes:  # none where the base was not run: then the width alone was checked
        if (settings.kv_heads, settings.token_dim) != (kv.heads, kv.heads * kv.key_dim):
            found = f"{settings.kv_heads} key heads, {settings.token_dim} wide together"
            allowed = f"{kv.heads}, {kv.heads * kv.key_dim} wide together"
            return [
                incompatible(
                    f"the config says {found}; {geometry.name} has {allowed}.",
                    item="num_attention_heads, token_dim",
                    found=found,
                    allowed=allowed,
                    hint=_OTHER_BASE,
                )
            ]
    return []


def _check_count(rows: int, geometry: BaseGeometry, limits: AdapterLimits) -> Problems:
    longest = min(limits.max_virtual_tokens, (geometry.context_length - 1) // 2)
    if rows <= longest:
        return []
    return [
        incompatible(
            f"{rows} virtual tokens are more than the limit of {longest}.",
            item=PROMPT_TENSOR,
            found=rows,
            allowed=longest,
            hint="The limit is max_virtual_tokens and less than half of the context length.",
        )
    ]
