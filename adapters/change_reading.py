"""Reads the tensors beside the low-rank pairs into `Changes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from polygraft.adapters.base_changes import Changes, TableChange
from polygraft.adapters.change_checks import (
    LocatedTensor,
    Role,
    by_role,
    incompatible,
    invalid,
)
from polygraft.adapters.config import LoraSettings, Problems
from polygraft.adapters.errors import AdapterUnsupported
from polygraft.adapters.files import CONFIG_FILE
from polygraft.adapters.geometry import BaseGeometry, hash_table
from polygraft.adapters.low_rank import LoraModule
from polygraft.adapters.safetensors_header import TensorEntry

Read = Callable[[TensorEntry], Tensor]  # the tensor in the serving dtype, finite

# How the manifest calls what a tensor brings: the key of the config where there is one.
_FEATURES = {
    Role.MAGNITUDE: "use_dora",
    Role.LORA_BIAS: "lora_bias",
    Role.BASE_BIAS: "bias",
    Role.BIAS: "bias",
    Role.TOKENS: "trainable_token_indices",
    Role.EMBEDDING_A: "embedding",
    Role.WEIGHT: "modules_to_save",
}


def read_changes(
    read: Read,
    located: Sequence[LocatedTensor],
    loras: Mapping[str, LoraModule],
    settings: LoraSettings,
    geometry: BaseGeometry,
    problems: Problems,
) -> Changes:
    """loras: the low-rank pairs by module, that of the output head among them. Copies of base
    weights are compared and dropped; one that differs is added to `problems`."""
    for module, entry in by_role(located, Role.COPY).items():
        problems.extend(_check_copy(module, read(entry), geometry))
    offsets = {}
    for module, entry in by_role(located, Role.LORA_BIAS).items():
        offsets[module] = read(entry).float() * loras[module].scaling
        if not bool(torch.isfinite(offsets[module]).all()):
            problems.append(
                invalid(
                    "overflows when it is multiplied by the scale of its layer.",
                    item=entry.name,
                    hint="The training diverged; use an earlier checkpoint.",
                )
            )
    biases = {
        module: read(entry)
        for role in (Role.BASE_BIAS, Role.BIAS)
        for module, entry in by_role(located, role).items()
        if module in geometry.modules and module != geometry.head.name
    }
    embedding = _read_embedding(read, located, settings, geometry)
    head = _read_head(read, located, loras, settings, geometry)
    if settings.ensure_weight_tying and geometry.is_tied:
        problems.extend(_check_tying(embedding, head))
    if head is not None:
        head = replace(head, offset=offsets.pop(geometry.head.name, None))
    return Changes(
        magnitudes={m: read(entry) for m, entry in by_role(located, Role.MAGNITUDE).items()},
        offsets=offsets,
        biases=biases,
        norms=_read_norms(read, located, geometry),
        embedding=embedding,
        head=head,
        features=_features(located, geometry.head.name in loras, settings),
    )


def _features(
    located: Sequence[LocatedTensor], adapts_head: bool, settings: LoraSettings
) -> tuple[str, ...]:
    found = {_FEATURES[tensor.role] for tensor in located if tensor.role in _FEATURES}
    if settings.bias == "none" and "bias" in found:  # it stands beside a weight saved in full
        found.remove("bias")
    if adapts_head:
        found.add("lm_head")
    return tuple(sorted(found))


def _read_norms(
    read: Read, located: Sequence[LocatedTensor], geometry: BaseGeometry
) -> dict[str, dict[str, Tensor]]:
    norms: dict[str, dict[str, Tensor]] = {}
    for tensor in located:
        if tensor.module in geometry.norms and tensor.role in (Role.WEIGHT, Role.BIAS):
            parameters = norms.setdefault(tensor.module, {})
            parameters[tensor.role.value[1:]] = read(tensor.entry)
    return norms


def _read_embedding(
    read: Read, located: Sequence[LocatedTensor], settings: LoraSettings, geometry: BaseGeometry
) -> TableChange | None:
    name = geometry.embedding.name
    change = _read_tokens(read, located, settings)
    weight = by_role(located, Role.WEIGHT).get(name)
    if weight is not None:
        change = TableChange(weight=read(weight))
    pair = [by_role(located, role).get(name) for role in (Role.EMBEDDING_A, Role.EMBEDDING_B)]
    if pair[0] is not None and pair[1] is not None:
        # W [vocab, hidden] += scaling * A^T B^T.
        lora = LoraModule(
            lora_a=read(pair[1]).t().contiguous(),
            lora_b=read(pair[0]).t().contiguous(),
            scaling=settings.scaling(name, pair[0].shape[0]),
        )
        change = replace(change or TableChange(), lora=lora)
    return change


def _read_head(
    read: Read,
    located: Sequence[LocatedTensor],
    loras: Mapping[str, LoraModule],
    settings: LoraSettings,
    geometry: BaseGeometry,
) -> TableChange | None:
    name = geometry.head.name
    lora = loras.get(name)
    weight = by_role(located, Role.WEIGHT).get(name)
    bias = by_role(located, Role.BIAS).get(name) or by_role(located, Role.BASE_BIAS).get(name)
    # A tied head takes its rows from the embedding, those that were trained as well.
    tokens = _read_tokens(read, located, settings) if geometry.is_tied else None
    if lora is None and weight is None and bias is None and tokens is None:
        return None
    return replace(
        tokens or TableChange(),
        weight=read(weight) if weight else None,
        bias=read(bias) if bias else None,
        lora=lora,
    )


def _read_tokens(
    read: Read, located: Sequence[LocatedTensor], settings: LoraSettings
) -> TableChange | None:
    entries = list(by_role(located, Role.TOKENS).values())
    if not entries or settings.token_indices is None:
        return None
    token_ids, order = torch.tensor(settings.token_indices).sort()
    return TableChange(token_ids=token_ids, rows=read(entries[0])[order].contiguous())


def _check_tying(embedding: TableChange | None, head: TableChange | None) -> Problems:
    """PEFT keeps the changes of tied tables the same, and ties them again when it loads them. What
    it saved may differ nevertheless, or lack one of them; then nobody knows what was trained."""
    tables = [table for table in (embedding, head) if table is not None]
    if not tables or all(table.token_ids is not None for table in tables):
        return []  # a tied head takes trained tokens from the embedding in any case
    if len(tables) == 2:
        pairs = [[*table.tensors()] for table in tables]
        scales = {table.lora.scaling for table in tables if table.lora}
        same = len(pairs[0]) == len(pairs[1]) and all(map(torch.equal, *pairs))
        if same and len(scales) <= 1:
            return []
    return [
        AdapterUnsupported(
            "embedding and head are to change alike, but what was saved of them does not.",
            file=CONFIG_FILE,
            item="ensure_weight_tying",
            found=True,
            hint="Retrain with ensure_weight_tying=False.",
        )
    ]


def _check_copy(module: str, copy: Tensor, geometry: BaseGeometry) -> Problems:
    table = geometry.embedding if module == geometry.embedding.name else geometry.head
    if hash_table(copy) == table.sha256:
        return []
    return [
        incompatible(
            f"the copy of {module} that was saved with it is not the weight of {geometry.name}.",
            item=module,
            hint="It was trained on another base; or save with save_embedding_layers=False.",
        )
    ]
