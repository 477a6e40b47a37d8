"""Which rows of a step take which adapters: tables for the native kernels, or for torch's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polygraft.kernels.grouped import GroupedSegments, Part, Segment, rank_class
from polygraft.kernels.native.lora import NativeLora, NativeLoraPlan
from polygraft.kernels.segments import LoraSegment
from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.batch import LoraUpdate
from polygraft.server.engine.messages import AdapterShare

Composition = tuple[AdapterShare, ...]  # the LoRAs of a request: digests, as rows are used again
Key = tuple[float, ...]  # equal for rows of one segment; rows of a step are ordered by it
BASE_ONLY: Key = (float("inf"),)  # sorts last


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, end) of the step that have one key."""

    key: Key
    start: int
    end: int


class LoraTables(Protocol):
    """Makes the updates of a step."""

    def place(self, wanted: Mapping[str, tuple[AdapterShare, ...]]) -> dict[str, Key]:
        """The key of each sequence, by its id, given the adapters that it uses."""
        ...

    def updates(self, spans: Sequence[Span]) -> list[LoraUpdate]:
        """The updates of rows whose keys `place` gave; spans of BASE_ONLY are left out."""
        ...


@dataclass(frozen=True, slots=True)
class _NativeUpdate:
    plan: NativeLoraPlan
    sites: Sequence[NativeLora]

    def add_(self, site: int, x: Tensor, y: Tensor) -> None:
        self.sites[site].add_(self.plan, x.contiguous(), y)


class NativeLoraTables:
    """For the native kernels: the pools are read in place, so nothing is copied."""

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        self._sites = [NativeLora(pool) for pool in bank.pools]

    def place(self, wanted: Mapping[str, tuple[AdapterShare, ...]]) -> dict[str, Key]:
        """A key is (first row, rows, weight) of every LoRA, one after another."""
        return {name: key_of(self._bank, shares) for name, shares in wanted.items()}

    def updates(self, spans: Sequence[Span]) -> list[LoraUpdate]:
        """One update for all rows."""
        segments = [LoraSegment(parts_of(span.key), span.start, span.end) for span in spans]
        return [_NativeUpdate(NativeLoraPlan(segments), self._sites)] if segments else []


def key_of(bank: AdapterBank, shares: tuple[AdapterShare, ...]) -> Key:
    """(first row, rows, weight) of every LoRA among these adapters, one after another."""
    parts = bank.parts(shares).values()
    key = [number for part in parts for number in (part.row0, part.num_rows, part.weight)]
    return tuple(key) or BASE_ONLY


def parts_of(key: Key) -> tuple[tuple[int, int, float], ...]:
    """What `key_of` made the key from; none for BASE_ONLY."""
    if key == BASE_ONLY:
        return ()
    numbers = iter(key)
    return tuple(
        (int(row0), int(rows), weight) for row0, rows, weight in zip(*[numbers] * 3, strict=True)
    )


class StackedLoraTables:
    """For torch's products: the adapters of the last steps stand stacked by rank class."""

    def __init__(self, bank: AdapterBank, device: torch.device) -> None:
        self._bank = bank
        self._device = device

    def place(self, wanted: Mapping[str, tuple[AdapterShare, ...]]) -> dict[str, Key]:
        """A key is (rank class, slot). Brings the adapters of this step into the stacks."""
        by_class: dict[int, dict[Composition, tuple[Part, ...]]] = defaultdict(dict)
        owner: dict[str, tuple[int, Composition]] = {}
        for name, shares in wanted.items():
            part_of = self._bank.parts(shares)
            if part_of:
                composition, parts = tuple(part_of), tuple(part_of.values())
                count = rank_class(parts)
                by_class[count][composition] = parts
                owner[name] = (count, composition)
        slots = {count: self._bank.stack(count).place(parts) for count, parts in by_class.items()}
        keys: dict[str, Key] = dict.fromkeys(wanted, BASE_ONLY)
        for name, (count, composition) in owner.items():
            keys[name] = (count, slots[count][composition])
        return keys

    def updates(self, spans: Sequence[Span]) -> list[LoraUpdate]:
        """One update for each rank class."""
        by_class: dict[int, list[Segment]] = defaultdict(list)
        for span in spans:
            count, slot = map(int, span.key)
            by_class[count].append(Segment(slot, span.start, span.end))
        return [
            GroupedSegments(self._bank.stack(count), segments, self._device)
            for count, segments in by_class.items()
        ]
