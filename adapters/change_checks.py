"""Tensors of a LoRA file beside its low-rank pairs: which are known, and whether they fit.

A tensor is known only if the config announces its feature; all others are left over, and refused
by the name of what writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from polygraft.adapters.config import LoraSettings, Problems
from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid, AdapterUnsupported
from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.safetensors_header import TensorEntry

PREFIX = "base_model.model."


class Role(Enum):
    """What a tensor is, by the end of its name."""

    MAGNITUDE = ".lora_magnitude_vector"
    LORA_BIAS = ".lora_B.bias"
    VELORA = ".lora_velora_embed"  # used in training only
    TOKENS = ".token_adapter.trainable_tokens_delta"
    EMBEDDING_A = ".lora_embedding_A"
    EMBEDDING_B = ".lora_embedding_B"
    COPY = ".base_layer.weight"  # of a base weight
    BASE_BIAS = ".base_layer.bias"
    BIAS = ".bias"
    WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class LocatedTensor:
    """A tensor with its role and the module of the base that it belongs to."""

    role: Role
    module: str
    entry: TensorEntry


def locate(
    entry: TensorEntry, settings: LoraSettings, geometry: BaseGeometry
) -> LocatedTensor | None:
    """What the tensor is, or None if config and base do not have it."""
    role = next((role for role in Role if entry.name.endswith(role.value)), None)
    if role is None or not entry.name.startswith(PREFIX):
        return None
    module = entry.name[len(PREFIX) : -len(role.value)]
    found = LocatedTensor(role, module, entry)
    return found if module and _is_announced(found, settings, geometry) else None


def _is_announced(found: LocatedTensor, settings: LoraSettings, geometry: BaseGeometry) -> bool:
    module = found.module
    tables = (geometry.embedding.name, geometry.head.name)
    is_table = module in tables
    # Of two that are tied, naming one saves both.
    meant = tables if is_table and settings.ensure_weight_tying and geometry.is_tied else (module,)
    is_saved = any(name.endswith(end) for name in meant for end in settings.modules_to_save)
    match found.role:
        case Role.MAGNITUDE:
            return settings.use_dora
        case Role.LORA_BIAS:
            return settings.lora_bias
        case Role.VELORA:
            return settings.has_velora
        case Role.TOKENS:
            return settings.token_indices is not None and module == geometry.embedding.name
        case Role.EMBEDDING_A | Role.EMBEDDING_B:
            return module == geometry.embedding.name
        case Role.COPY:
            return is_table
        case Role.BASE_BIAS:
            return settings.bias != "none" and module in geometry.modules
        case Role.BIAS:
            known = module in geometry.modules or module in geometry.norms
            return (settings.bias == "all" or is_saved) and known
        case Role.WEIGHT:
            return is_saved and (is_table or module in geometry.norms)


def check_changes(
    located: Sequence[LocatedTensor],
    adapted: Collection[str],
    names: Collection[str],
    settings: LoraSettings,
    geometry: BaseGeometry,
) -> Problems:
    """What is wrong with them, beside what the reading finds. adapted: modules with a pair; names:
    those of all tensors."""
    problems: Problems = []
    for tensor in located:
        problem = _check_place(tensor, adapted, geometry) or _check_shape(
            tensor, settings, geometry
        )
        if problem is not None:
            problems.append(problem)
    problems.extend(_check_complete(located, adapted, settings, geometry))
    problems.extend(_check_saved(names, settings))
    return problems


def _check_place(
    tensor: LocatedTensor, adapted: Collection[str], geometry: BaseGeometry
) -> AdapterInvalid | None:
    """Whether this server can apply it at that module."""
    module, role = tensor.module, tensor.role
    shape = geometry.modules.get(module)
    if role is Role.MAGNITUDE and module in (geometry.embedding.name, geometry.head.name):
        return unsupported(tensor, f"DoRA on {module}", "Retrain with LoRA on it, or none.")
    of_a_pair = (Role.MAGNITUDE, Role.LORA_BIAS, Role.BASE_BIAS, Role.VELORA)
    if role in of_a_pair and module not in adapted:
        return invalid(
            f"{module} has no low-rank pair that this could belong to.", item=tensor.entry.name
        )
    if role in (Role.BASE_BIAS, Role.BIAS) and shape is not None and shape.kind == "internal":
        return unsupported(
            tensor, f"a bias of {module}, which not every token passes once", 'Use bias="none".'
        )
    if role in (Role.BIAS, Role.WEIGHT) and module in geometry.norms:
        return _check_norm(tensor, geometry)
    changes_rows = role in (Role.TOKENS, Role.EMBEDDING_A, Role.EMBEDDING_B, Role.WEIGHT)
    if module == geometry.embedding.name and changes_rows and not geometry.embedding.is_plain:
        return unsupported(
            tensor,
            f"a change of {module}, which does more than look rows up",
            "Retrain without it.",
        )
    changes_head = module == geometry.head.name and role in (Role.WEIGHT, Role.BIAS)
    is_applied = geometry.head.is_plain
    if role is Role.TOKENS and geometry.is_tied:
        changes_head = True
        is_applied &= not geometry.head.has_bias  # PEFT would leave the bias out
    if changes_head and not is_applied:
        return unsupported(
            tensor, f"a change of the output head {geometry.head.name}", "Retrain without it."
        )
    return None


def _check_norm(tensor: LocatedTensor, geometry: BaseGeometry) -> AdapterInvalid | None:
    if geometry.norms[tensor.module].is_by_token:
        return None
    return unsupported(
        tensor,
        f"a change of {tensor.module}, which normalises parts of a row",
        "Name the norms of the layers in modules_to_save, not those inside attention.",
    )


def _check_shape(
    tensor: LocatedTensor, settings: LoraSettings, geometry: BaseGeometry
) -> AdapterInvalid | AdapterIncompatible | None:
    wanted = _wanted_shape(tensor, settings, geometry)
    if wanted is not None and tensor.entry.shape == wanted:
        return None
    found = list(tensor.entry.shape)
    if wanted is None:
        return incompatible(
            f"{tensor.module} of {geometry.name} has no such parameter.",
            item=tensor.entry.name,
            found=found,
            hint="It was trained on another base.",
        )
    return incompatible(
        f"its shape is {found}, for {geometry.name} it must be {list(wanted)}.",
        item=tensor.entry.name,
        found=found,
        allowed=list(wanted),
        hint="It was trained on another base, or with a resized vocabulary.",
    )


def _wanted_shape(
    tensor: LocatedTensor, settings: LoraSettings, geometry: BaseGeometry
) -> tuple[int, ...] | None:
    """None: the base has no such parameter."""
    module, table = tensor.module, geometry.embedding
    linear = geometry.modules.get(module)
    match tensor.role:
        case Role.VELORA:
            return tensor.entry.shape
        case Role.MAGNITUDE | Role.LORA_BIAS:
            return (linear.out_features,) if linear else None
        case Role.BIAS | Role.BASE_BIAS:
            if module in geometry.norms:
                norm = geometry.norms[module]
                return (norm.width,) if norm.has_bias else None
            return (linear.out_features,) if linear and linear.has_bias else None
        case Role.WEIGHT:
            norm_shape = geometry.norms.get(module)
            return (norm_shape.width,) if norm_shape else (table.num_rows, table.width)
        case Role.COPY:
            return (table.num_rows, table.width)
        case Role.TOKENS:
            assert settings.token_indices is not None
            return (len(settings.token_indices), table.width)
        case Role.EMBEDDING_A:
            return (_rank(tensor, 0), table.num_rows)
        case Role.EMBEDDING_B:
            return (table.width, _rank(tensor, 1))


def _rank(tensor: LocatedTensor, dimension: int) -> int:
    """Of one half of a pair, as its own shape has it; any number where that has no such place."""
    shape = tensor.entry.shape
    return shape[dimension] if len(shape) == 2 else 1


def _check_complete(
    located: Sequence[LocatedTensor],
    adapted: Collection[str],
    settings: LoraSettings,
    geometry: BaseGeometry,
) -> Problems:
    """Whatever the config announces must be there, and what belongs together as well."""
    problems: Problems = []
    modules: dict[Role, set[str]] = {role: set() for role in Role}
    for tensor in located:
        modules[tensor.role].add(tensor.module)
    for wanted, role in ((settings.use_dora, Role.MAGNITUDE), (settings.lora_bias, Role.LORA_BIAS)):
        if wanted:
            missing = sorted(set(adapted) - modules[role])
            problems.extend(_missing(module, role) for module in missing)
    if settings.token_indices is not None:
        if not modules[Role.TOKENS]:
            problems.append(_missing(geometry.embedding.name, Role.TOKENS))
        problems.extend(_check_token_ids(settings, settings.token_indices, geometry))
    for one, other in (
        (Role.EMBEDDING_A, Role.EMBEDDING_B),
        (Role.EMBEDDING_B, Role.EMBEDDING_A),
    ):
        problems.extend(_missing(module, other) for module in modules[one] - modules[other])
    head = geometry.head.name
    if geometry.head.has_bias and head in modules[Role.WEIGHT] - modules[Role.BIAS]:
        problems.append(_missing(head, Role.BIAS))
    changed_twice = {
        t.module
        for t in located
        if t.module in (geometry.embedding.name, geometry.head.name) and t.role is Role.WEIGHT
    } & (set(adapted) | modules[Role.EMBEDDING_A] | modules[Role.TOKENS])
    problems.extend(
        invalid(f"{module} is both trained in full and adapted.", item=module)
        for module in changed_twice
    )
    return problems


def _check_saved(names: Collection[str], settings: LoraSettings) -> Problems:
    """Of every module that was to be saved there must be something."""
    return [
        AdapterInvalid(
            f"no tensor of {module} is in {WEIGHTS_FILE}.",
            file=CONFIG_FILE,
            item="modules_to_save",
            found=module,
            hint="Save it again with save_pretrained(), or take the name out.",
        )
        for module in settings.modules_to_save
        if not any(f"{module}." in name for name in names)
    ]


def _check_token_ids(
    settings: LoraSettings, indices: Sequence[int], geometry: BaseGeometry
) -> Problems:
    rows, name = geometry.embedding.num_rows, geometry.embedding.name
    if settings.token_layer is not None and not name.endswith(settings.token_layer):
        return [
            AdapterUnsupported(
                f"tokens of {settings.token_layer} are not served, only those of {name}.",
                file=CONFIG_FILE,
                item="trainable_token_indices",
                found=settings.token_layer,
                allowed=name,
                hint="Retrain with the tokens of the input embedding only.",
            )
        ]
    if len(set(indices)) == len(indices) and all(0 <= i < rows for i in indices):
        return []
    return [
        AdapterInvalid(
            f"they must be different and within the {rows} rows of the embedding.",
            file=CONFIG_FILE,
            item="trainable_token_indices",
            found=list(indices)[:20],
            allowed=f"0..{rows - 1}",
            hint="It was trained on another base, or with a resized vocabulary.",
        )
    ]


def by_role(located: Sequence[LocatedTensor], role: Role) -> Mapping[str, TensorEntry]:
    """Module -> tensor of that role."""
    return {tensor.module: tensor.entry for tensor in located if tensor.role is role}


def _missing(module: str, role: Role) -> AdapterInvalid:
    return invalid(
        f"{role.value[1:]} of {module} is missing.",
        item=PREFIX + module + role.value,
        hint="Save it again with save_pretrained().",
    )


def unsupported(tensor: LocatedTensor, what: str, hint: str) -> AdapterUnsupported:
    """The refusal of what this server cannot apply at that place."""
    return AdapterUnsupported(
        f"the file holds {what}, which is not supported.",
        file=WEIGHTS_FILE,
        item=tensor.entry.name,
        found=tensor.module,
        hint=hint,
    )


def invalid(message: str, **fields: object) -> AdapterInvalid:
    """A refusal of the weights file; `fields` are those of PolygraftError."""
    return AdapterInvalid(message, file=WEIGHTS_FILE, **fields)  # type: ignore[arg-type]


def incompatible(message: str, **fields: object) -> AdapterIncompatible:
    """A refusal because of the base; `fields` are those of PolygraftError."""
    return AdapterIncompatible(message, file=WEIGHTS_FILE, **fields)  # type: ignore[arg-type]
