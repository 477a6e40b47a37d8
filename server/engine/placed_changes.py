"""Brings changes besides low-rank updates to the device: by site instead of by module.

    y = gain * (W x) + bias   becomes   y := gain * y + offset   on the rows of one adapter,

before the low-rank updates are added. DoRA, biases and the bias of LoRA are all of this form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from polygraft.adapters.base_changes import TableChange
from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.low_rank import LoraModule
from polygraft.adapters.weights import AdapterWeights
from polygraft.server.engine.changed_rows import Affine, PlacedChanges
from polygraft.server.engine.sites import Site

_FLOAT32 = 4  # bytes; gains and offsets


def place_changes(
    weights: AdapterWeights, sites: Sequence[Site], place_of: Mapping[str, tuple[int, int]]
) -> tuple[PlacedChanges | None, Mapping[str, LoraModule]]:
    """The changes of a version, None if there are none, and its low-rank updates as the pool is to
    hold them: those of DoRA with the gain in B.

    place_of: module -> index of its site and place in it. Raises AdapterInvalid when a gain is not
    finite.
    """
    changes = weights.changes
    if not changes:
        return None, weights.modules
    modules = dict(weights.modules)
    gains: dict[str, Tensor] = {}
    for name, magnitude in changes.magnitudes.items():
        index, z = place_of[name]
        gains[name] = _gain(name, magnitude, sites[index].row_norms(z, modules[name]))
        module = modules[name]
        scaled = (module.lora_b.float() * gains[name][:, None]).to(module.lora_b.dtype)
        if not bool(torch.isfinite(scaled).all()):  # it would reach rows of others in the pool
            raise _not_finite(name, "the update overflows when it is multiplied by DoRA's gain.")
        modules[name] = replace(module, lora_b=scaled)
    by_site = {place_of[name][0] for name in (*gains, *changes.offsets, *changes.biases)}
    affine = {
        index: _affine(sites[index], gains, changes.offsets, changes.biases) for index in by_site
    }
    return PlacedChanges(affine, changes.norms, changes.embedding, changes.head), modules


def moved(changes: PlacedChanges, move: Callable[[Tensor], Tensor]) -> PlacedChanges:
    """The same with each tensor as `move` gives it back."""
    return PlacedChanges(
        {
            index: Affine(None if a.gain is None else move(a.gain), move(a.offset))
            for index, a in changes.affine.items()
        },
        {
            name: {key: move(tensor) for key, tensor in parameters.items()}
            for name, parameters in changes.norms.items()
        },
        _moved_table(changes.embedding, move),
        _moved_table(changes.head, move),
    )


def _moved_table(table: TableChange | None, move: Callable[[Tensor], Tensor]) -> TableChange | None:
    if table is None:
        return None
    tensors = {
        name: move(tensor)
        for name in ("weight", "bias", "token_ids", "rows", "offset")
        if (tensor := getattr(table, name)) is not None
    }
    lora = table.lora
    if lora is not None:
        lora = replace(lora, lora_a=move(lora.lora_a), lora_b=move(lora.lora_b))
    return TableChange(lora=lora, **tensors)


def placed_bytes(
    weights: AdapterWeights, sites: Sequence[Site], place_of: Mapping[str, tuple[int, int]]
) -> int:
    """What `place_changes` takes on the device besides rank rows; asked before there is room."""
    changes = weights.changes
    by_site = {
        place_of[name][0] for name in (*changes.magnitudes, *changes.offsets, *changes.biases)
    }
    affine = sum(sites[index].shape.out_features for index in by_site) * 2 * _FLOAT32
    tables = [table for table in (changes.embedding, changes.head) if table is not None]
    tensors = [tensor for table in tables for tensor in table.tensors()]
    tensors += [tensor for norm in changes.norms.values() for tensor in norm.values()]
    return affine + sum(tensor.nbytes for tensor in tensors)


def _affine(
    site: Site,
    gains: Mapping[str, Tensor],
    offsets: Mapping[str, Tensor],
    biases: Mapping[str, Tensor],
) -> Affine:
    gain = torch.ones(site.shape.out_features)
    offset = torch.zeros(site.shape.out_features)
    bias = torch.zeros_like(offset) if site.bias is None else site.bias.float().cpu()
    for z, name in enumerate(site.names):
        low, high = site.shape.bounds(z)
        columns = slice(low, high)
        own = biases[name].float() if name in biases else bias[columns]
        gain[columns] = gains.get(name, gain[columns])
        # y has the base's bias in it, which the gain must not reach.
        offset[columns] = own - gain[columns] * bias[columns]
        if name in offsets:
            offset[columns] += offsets[name].float()
    has_gain = any(name in gains for name in site.names)
    return Affine(gain if has_gain else None, offset)


def _gain(name: str, magnitude: Tensor, norms: Tensor) -> Tensor:
    """g = m / ||W + s B A|| by rows (arXiv 2402.09353, section 4.3, where it is constant)."""
    gain = magnitude.float() / norms
    if not bool(torch.isfinite(gain).all()):
        raise _not_finite(name, "a row of the base plus its update is zero, which has no DoRA.")
    return gain


def _not_finite(name: str, message: str) -> AdapterInvalid:
    return AdapterInvalid(message, item=name, hint="Retrain without DoRA.")
