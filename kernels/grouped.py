"""Multi-adapter LoRA on a CPU: two grouped matrix products per site for any mix of adapters.

Knows tensors, rows and opaque keys, not adapters. `RankStack` holds the rank columns of the
adapters in use, stacked per *rank class* (rows padded to a power of two), so that one step costs
two `bmm` per site and class instead of a Python loop over adapters. Several adapters weighted in
one request are one key whose columns stand behind each other, nothing is merged:

    h[g] = scale[g] * (x[g] @ A[g]^T)        y[g] += h[g] @ B[g]

A is [groups, R*Z, in]; B is [groups, R*Z, out], block-diagonal over the Z slices of the site. The
stack is changed incrementally: a step that brings one new adapter copies that adapter only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from polygraft.kernels.rank_pool import SitePool

K = TypeVar("K", bound=Hashable)
LONG_SEGMENT = 32  # rows from which a segment is multiplied alone instead of padding the others


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter of a key: its pool rows [row0, row0 + num_rows) and the weight of its update."""

    row0: int
    num_rows: int
    weight: float = 1.0


def rank_class(parts: Sequence[Part]) -> int:
    """Rows that a key with these parts takes: the next power of two."""
    return 1 << (sum(part.num_rows for part in parts) - 1).bit_length()


class RankStack:
    """Columns of one rank class, for every site. Owned by the engine thread.

    `pools[i]` is the rank-row pool of site i; `num_rows` the rank class R. Slots are places in the
    stack; `place` returns the slot of each key and keeps the used slots dense.
    """

    def __init__(self, pools: Sequence[SitePool], num_rows: int) -> None:
        self.pools = pools
        self.num_rows = num_rows
        self._slots: list[Hashable | None] = []
        self._capacity = 0
        self._a: list[Tensor] = []
        self._b: list[Tensor] = []
        self._scale: list[Tensor] = []
        self._targets: list[list[bool]] = []  # per slot, per site: whether the site has rows

    def place(self, parts_of: Mapping[K, Sequence[Part]]) -> dict[K, int]:
        """Slots of the given keys, copying from the pool what is not stacked yet.

        parts_of: key -> its adapters; equal keys must always mean the same rows and weights with
        the same content. Slots of keys that are not named may be overwritten.
        """
        self._drop_unused(parts_of)
        held = {key: slot for slot, key in enumerate(self._slots) if key is not None}
        holes = [slot for slot, key in enumerate(self._slots) if key is None]
        for key, parts in parts_of.items():
            if key in held:
                continue
            slot = holes.pop(0) if holes else self._append()
            self._fill(slot, parts)
            self._slots[slot] = key
            held[key] = slot
        return {key: held[key] for key in parts_of}

    def is_active(self, site: int, slots: Sequence[int]) -> bool:
        """Whether any key in `slots` has rows in this site."""
        return any(self._targets[slot][site] for slot in slots)

    def columns(self, site: int) -> tuple[Tensor, Tensor, Tensor]:
        """A [g, R*Z, in], B [g, R*Z, out], scale [g, 1, R*Z] of the g used slots."""
        used = len(self._slots)
        return self._a[site][:used], self._b[site][:used], self._scale[site][:used]

    def _drop_unused(self, wanted: Mapping[K, Sequence[Part]]) -> None:
        for slot, key in enumerate(self._slots):
            if key not in wanted:
                self._slots[slot] = None
        # A hole at the end costs nothing to drop; one in the middle costs a padded group until it
        # is filled again, so move the last used slot into it while holes outnumber a quarter.
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        missing = [key for key in wanted if key not in self._slots]
        while self._slots.count(None) - len(missing) > len(self._slots) // 4:
            self._move(len(self._slots) - 1, self._slots.index(None))
            while self._slots and self._slots[-1] is None:
                self._slots.pop()

    def _append(self) -> int:
        if len(self._slots) == self._capacity:
            self._grow(max(4, 2 * self._capacity))
        self._slots.append(None)
        return len(self._slots) - 1

    def _grow(self, capacity: int) -> None:
        old = (self._a, self._b, self._scale)
        self._a, self._b, self._scale = [], [], []
        for site, pool in enumerate(self.pools):
            columns = self.num_rows * len(pool.shape.slices)
            a = pool.a.new_zeros(capacity, columns, pool.shape.in_features)
            b = pool.bt.new_zeros(capacity, columns, pool.shape.out_features)
            scale = pool.scale.new_zeros(capacity, 1, columns)
            if self._capacity:
                for new, previous in zip((a, b, scale), old, strict=True):
                    new[: self._capacity] = previous[site]
            self._a.append(a)
            self._b.append(b)
            self._scale.append(scale)
        self._targets += [[False] * len(self.pools) for _ in range(capacity - self._capacity)]
        self._capacity = capacity

    def _fill(self, slot: int, parts: Sequence[Part]) -> None:
        for site in range(len(self.pools)):
            self._targets[slot][site] = False
            start = 0
            for part in parts:
                self._copy_part(slot, site, start, part)
                start += part.num_rows
            # Zeroed, not skipped: a stale column of the slot's last owner must not act.
            self._zero(slot, site, start, self.num_rows)

    def _copy_part(self, slot: int, site: int, start: int, part: Part) -> None:
        """Copy the columns of one adapter to the rows of the slot from `start` on."""
        pool, end = self.pools[site], start + part.num_rows
        rows = slice(part.row0, part.row0 + part.num_rows)
        scale = pool.scale[rows]
        if not scale.any():
            self._zero(slot, site, start, end)
            return
        self._targets[slot][site] = True
        a, b, scales = self._rows(slot, site)
        a[start:end].copy_(pool.a[rows])
        torch.mul(scale, part.weight, out=scales[start:end])
        for z in range(len(pool.shape.slices)):
            lo, hi = pool.shape.bounds(z)
            b[start:end, z, lo:hi].copy_(pool.bt[rows, lo:hi])

    def _zero(self, slot: int, site: int, start: int, end: int) -> None:
        for tensor in self._rows(slot, site):
            tensor[start:end].zero_()

    def _rows(self, slot: int, site: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views of one slot by rank row: A [R, Z, in], B [R, Z, out], scale [R, Z]."""
        shape = (self.num_rows, len(self.pools[site].shape.slices))
        a, b, scale = self._a[site][slot], self._b[site][slot], self._scale[site][slot]
        return a.view(*shape, -1), b.view(*shape, -1), scale.view(*shape)

    def _move(self, source: int, target: int) -> None:
        for tensors in (self._a, self._b, self._scale):
            for tensor in tensors:
                tensor[target].copy_(tensor[source])
        self._targets[target] = list(self._targets[source])
        self._slots[target], self._slots[source] = self._slots[source], None


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) of the step that belong to the key in `slot`."""

    slot: int
    start: int
    end: int


class GroupedSegments:
    """What one step needs of one rank class: which rows go to which slot.

    Short segments are padded to the longest of them and multiplied together; segments of
    LONG_SEGMENT rows or more (prefill chunks) are multiplied alone.
    """

    def __init__(self, stack: RankStack, segments: Sequence[Segment], device: torch.device) -> None:
        self.stack = stack
        self.slots = [segment.slot for segment in segments]
        self.long = [s for s in segments if s.end - s.start >= LONG_SEGMENT]
        short = [s for s in segments if s.end - s.start < LONG_SEGMENT]
        self._pad, self._rows, self._inverse = _padding(short, device)
        self._active: dict[int, bool] = {}

    def add_(self, site: int, x: Tensor, y: Tensor) -> None:
        """Add the low-rank update in place. x: [num_tokens, in]; y: [num_tokens, out]."""
        if site not in self._active:
            self._active[site] = self.stack.is_active(site, self.slots)
        if not self._active[site]:
            return
        a, b, scale = self.stack.columns(site)
        for segment in self.long:
            rows = slice(segment.start, segment.end)
            h = torch.mm(x[rows], a[segment.slot].t()).mul_(scale[segment.slot])
            y[rows].addmm_(h, b[segment.slot])
        if self._pad is not None:
            groups, width = self._pad.shape
            grouped = x.index_select(0, self._pad.view(-1)).view(groups, width, -1)
            h = torch.bmm(grouped, a[:groups].transpose(1, 2)).mul_(scale[:groups])
            update = torch.bmm(h, b[:groups]).view(groups * width, -1)
            y.index_add_(0, self._rows, update.index_select(0, self._inverse))


def _padding(
    segments: Sequence[Segment], device: torch.device
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Row table of the grouped product: pad [groups, width], rows [n], place of each row [n]."""
    empty = torch.empty(0, dtype=torch.int64, device=device)
    if not segments:
        return None, empty, empty
    groups = max(segment.slot for segment in segments) + 1
    width = max(segment.end - segment.start for segment in segments)
    pad = [[0] * width for _ in range(groups)]
    rows: list[int] = []
    inverse: list[int] = []
    for segment in segments:
        for j, row in enumerate(range(segment.start, segment.end)):
            pad[segment.slot][j] = row
            rows.append(row)
            inverse.append(segment.slot * width + j)

    def table(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return table(pad), table(rows), table(inverse)
