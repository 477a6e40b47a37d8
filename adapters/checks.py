"""Names and shapes of a LoRA's tensors against the base, from the header alone.

Every tensor must belong to a known LoRA pair; what is left over is named after the PEFT feature
that writes it, because that is what the uploader can turn off.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polygraft.adapters.change_checks import (
    PREFIX,
    LocatedTensor,
    Role,
    by_role,
    check_changes,
    incompatible,
    invalid,
    locate,
)
from polygraft.adapters.config import LoraSettings, Problems
from polygraft.adapters.errors import (
    MAX_PROBLEMS_SHOWN,
    AdapterIncompatible,
    AdapterInvalid,
    AdapterUnsupported,
    raise_all,
)
from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.safetensors_header import TensorEntry

PROMPT_TENSOR = "prompt_embeddings"  # of prompt tuning, p-tuning and prefix tuning
LEAF_A = ".lora_A.weight"
LEAF_B = ".lora_B.weight"
# What PEFT features leave in the file -> (name of the feature, way out). First match wins.
LEFTOVERS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), feature, hint)
    for pattern, feature, hint in (
        (
            r"\.lora_[AB]\.[^.]+\.(weight|bias)$",
            "a tensor with the adapter's name left in its key",
            "Save with save_pretrained() instead of state_dict().",
        ),
        (
            r"\.lora_[AB]\.weight$",
            "LoRA beside a soft prompt",
            "Save LoRA and soft prompt as two adapters.",
        ),
        (r"lora_magnitude_vector", "DoRA", "Retrain with use_dora=False."),
        (r"\.lora_B\.bias$", "a bias of LoRA", "Retrain with lora_bias=False."),
        (r"lora_embedding_[AB]", "LoRA on an embedding", "Target linear modules only."),
        (
            r"token_adapter|trainable_tokens",
            "trainable tokens",
            "Retrain without trainable_token_indices.",
        ),
        (r"\.base_layer\.", "a copy of a base weight", "Save with save_embedding_layers=False."),
        (
            r"modules_to_save|original_module",
            "modules_to_save",
            'Save with save_pretrained(); beside bias="all" retrain without it.',
        ),
        (
            r"prompt_embeddings",
            "a soft prompt beside LoRA",
            "Save LoRA and soft prompt as two adapters.",
        ),
        (r"\.bias$", "a trained bias", 'Retrain with bias="none".'),
        (
            r"\.weight$",
            "a full weight (modules_to_save or a resized embedding)",
            "Retrain without modules_to_save; save with save_embedding_layers=False.",
        ),
    )
)

LoraPair = tuple[TensorEntry, TensorEntry]  # lora_A, lora_B


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """The tensors of a LoRA file: low-rank pairs by module, the output head's among them, and all
    others."""

    pairs: Mapping[str, LoraPair]
    located: Sequence[LocatedTensor]


def check_lora(
    settings: LoraSettings,
    entries: Sequence[TensorEntry],
    geometry: BaseGeometry,
    limits: AdapterLimits,
) -> LoraTensors:
    """Gives every tensor its place; raises with all problems found."""
    problems: Problems = []
    halves: dict[str, dict[str, TensorEntry]] = {}
    located: list[LocatedTensor] = []
    for entry in entries:
        leaf = next((leaf for leaf in (LEAF_A, LEAF_B) if entry.name.endswith(leaf)), None)
        if leaf and entry.name.startswith(PREFIX):
            module = entry.name[len(PREFIX) : -len(leaf)]
            halves.setdefault(module, {})[leaf] = entry
        elif (tensor := locate(entry, settings, geometry)) is not None:
            located.append(tensor)
        else:
            problems.append(leftover(entry.name, leaf is not None))
    pairs: dict[str, LoraPair] = {}
    for module, half in halves.items():
        if len(half) == 2:
            pairs[module] = (half[LEAF_A], half[LEAF_B])
            if module in geometry.modules:
                problems.extend(_check_pair(settings, module, pairs[module], geometry, limits))
            else:
                # Why: looking for the nearest name is slow, and a file may hold 10 000 wrong ones.
                suggest = len(problems) < MAX_PROBLEMS_SHOWN
                problems.append(_no_such_module(module, geometry, suggest))
        else:
            problems.append(_unpaired(next(iter(half.values())).name))
    names = {entry.name for entry in entries}
    problems.extend(check_changes(located, pairs.keys(), names, settings, geometry))
    problems.extend(_check_embedding_pair(settings, located, limits))
    if not pairs and not located and not problems:
        problems.append(
            invalid("the file holds no LoRA tensors.", hint="Save it with save_pretrained().")
        )
    raise_all(problems)
    return LoraTensors(pairs, located)


def _check_embedding_pair(
    settings: LoraSettings, located: Sequence[LocatedTensor], limits: AdapterLimits
) -> Problems:
    """The ranks of a LoRA on the embedding."""
    first, second = (by_role(located, role) for role in (Role.EMBEDDING_A, Role.EMBEDDING_B))
    problems: Problems = []
    for module in first.keys() & second.keys():
        a, b = first[module], second[module]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            problems.append(_not_a_pair(a, b))
        else:
            problems.extend(_check_rank(settings, module, a.shape[0], limits))
            problems.extend(_check_alpha(settings, module))
    return problems


def _not_a_pair(a: TensorEntry, b: TensorEntry) -> AdapterInvalid:
    return invalid(
        f"shapes A {list(a.shape)} and B {list(b.shape)} are not [rank, in] and [out, rank] with "
        "one rank.",
        item=a.name,
        found=[list(a.shape), list(b.shape)],
    )


def _check_pair(
    settings: LoraSettings,
    module: str,
    pair: LoraPair,
    geometry: BaseGeometry,
    limits: AdapterLimits,
) -> Problems:
    shape = geometry.modules[module]
    is_applied = geometry.head.is_plain if shape.kind == "lm_head" else shape.kind != "internal"
    if not is_applied:
        return [
            AdapterUnsupported(
                f"{module} of {geometry.name} is not a linear layer that every token passes once "
                "(as routers, experts and parts of an output head are not), so LoRA on it cannot "
                "be applied.",
                file=WEIGHTS_FILE,
                item=pair[0].name,
                found=module,
                hint="Train on attention only.",
            )
        ]
    a, b = pair
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return [_not_a_pair(a, b)]
    problems: Problems = []
    if (a.shape[1], b.shape[0]) != (shape.in_features, shape.out_features):
        problems.append(
            incompatible(
                f"it maps {a.shape[1]} to {b.shape[0]} features, the module of {geometry.name} "
                f"maps {shape.in_features} to {shape.out_features}.",
                item=module,
                found=[a.shape[1], b.shape[0]],
                allowed=[shape.in_features, shape.out_features],
                hint="It was trained on another base.",
            )
        )
    problems.extend(_check_rank(settings, module, a.shape[0], limits))
    problems.extend(_check_alpha(settings, module))
    return problems


def _check_rank(settings: LoraSettings, module: str, rank: int, limits: AdapterLimits) -> Problems:
    problems: Problems = []
    if rank > limits.max_rank:
        problems.append(
            incompatible(
                f"rank {rank} is more than the limit of {limits.max_rank}.",
                item=module,
                found=rank,
                allowed=limits.max_rank,
                hint="Retrain with a lower rank, or raise max_rank on the server.",
            )
        )
    declared = settings.rank.values(module)
    if rank not in declared:
        listing = " or ".join(str(value) for value in declared)
        problems.append(
            invalid(
                f"the tensor has rank {rank}, the config says {listing}.",
                item=module,
                found=rank,
                allowed=listing,
                hint="Config and weights are not from the same save_pretrained().",
            )
        )
    return problems


def _check_alpha(settings: LoraSettings, module: str) -> Problems:
    alphas = settings.alpha.values(module)
    if len(alphas) == 1:
        return []
    return [
        AdapterInvalid(
            f"several patterns match {module} and give it {', '.join(map(str, alphas))}; PEFT "
            "sorts them when it saves, so the one it was trained with is lost.",
            file=CONFIG_FILE,
            item="alpha_pattern",
            found=list(alphas),
            allowed="one value",
            hint="Leave only the pattern that was used in adapter_config.json.",
        )
    ]


def _no_such_module(module: str, geometry: BaseGeometry, suggest: bool) -> AdapterIncompatible:
    hint = "It was trained on another base."
    if re.search(r"\.experts(\.|$)", module):
        hint = "Expert weights are not supported; train on attention only."
    elif suggest and (near := difflib.get_close_matches(module, geometry.modules, 1, 0.4)):
        hint = f"The nearest is {near[0]}."
    return incompatible(
        f"{geometry.name} ({geometry.architecture}) has no linear module of this name.",
        item=module,
        found=module,
        hint=hint,
    )


def leftover(name: str, is_lora: bool) -> AdapterInvalid:
    """The refusal of a tensor that belongs to no known part of an adapter."""
    if is_lora or not name.startswith((PREFIX, PROMPT_TENSOR)):
        return invalid(
            f"the key does not start with {PREFIX}, so PEFT would drop it without a word.",
            item=name,
            found=name,
            allowed=PREFIX + "<module>" + LEAF_A,
            hint="Save with save_pretrained() on the PeftModel.",
        )
    for pattern, feature, hint in LEFTOVERS:
        if pattern.search(name):
            return AdapterUnsupported(
                f"the file holds {feature}, which is not supported.",
                file=WEIGHTS_FILE,
                item=name,
                found=name,
                hint=hint,
            )
    return invalid("the tensor belongs to no known part of an adapter.", item=name, found=name)


def _unpaired(name: str) -> AdapterInvalid:
    other = LEAF_B if name.endswith(LEAF_A) else LEAF_A
    return invalid(
        f"the pair is incomplete: {other[1:]} of the same module is missing.",
        item=name,
        found=name,
        hint="Save it again with save_pretrained().",
    )
