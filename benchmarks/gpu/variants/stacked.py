"""The pools of a case as other systems keep adapters: one slot of the largest rank for each."""

from __future__ import annotations

from torch import Tensor

from benchmarks.gpu.sites import Copy, SiteCase
from benchmarks.gpu.variants import VariantAbsent
from benchmarks.peers import PeerAbsent
from benchmarks.peers.lora_kernels import folder


def sources() -> str:
    """Where the kernels of others lie. Raises VariantAbsent where they were not installed."""
    try:
        return str(folder())
    except PeerAbsent as absent:
        raise VariantAbsent(str(absent)) from None


def by_slice(case: SiteCase, copy: Copy) -> tuple[list[Tensor], list[Tensor]]:
    """A [slots, r, K] and B [slots, width, r] of each projection, the scale in B."""
    slots, rank = max(case.load.adapters, 1), max(case.load.ranks)
    a_of, b_of = [], []
    for z, low, high in case.slices():
        a = copy.a.new_zeros(slots, rank, case.shape.inputs)
        b = copy.bt.new_zeros(slots, high - low, rank)
        for slot, (row0, own) in enumerate(case.load.rank_rows()):
            pool = slice(row0, row0 + own)
            a[slot, :own] = copy.a[pool, z]
            scaled = copy.bt[pool, low:high] * case.weights.scale[pool, z : z + 1]
            b[slot, :, :own] = scaled.t()
        a_of.append(a)
        b_of.append(b)
    return a_of, b_of


def packed(case: SiteCase, copy: Copy) -> tuple[Tensor, Tensor]:
    """A [slots, Z * r, K], the slices of an adapter behind each other; B [slots, N, r] unscaled."""
    slots, rank = max(case.load.adapters, 1), max(case.load.ranks)
    num_slices = len(case.shape.slices)
    a = copy.a.new_zeros(slots, num_slices * rank, case.shape.inputs)
    b = copy.bt.new_zeros(slots, case.shape.outputs, rank)
    for slot, (row0, own) in enumerate(case.load.rank_rows()):
        pool = slice(row0, row0 + own)
        a[slot, : num_slices * own] = copy.a[pool].transpose(0, 1).flatten(0, 1)
        b[slot, :, :own] = copy.bt[pool].t()
    return a, b


def slot_of_row(case: SiteCase) -> list[int]:
    """The adapter of each row, -1 for base only."""
    slots = [-1] * case.load.rows
    for slot, segment in enumerate(case.segments):
        slots[segment.start : segment.end] = [slot] * (segment.end - segment.start)
    return slots
