"""The device tier: rank rows, soft prompts and prefixes of resident versions.

Loader threads reserve, copy and free here; the engine thread reads. A version's rows are written
before anybody is told that it is ready, and freed only when nobody references it (the caller,
`adapters.residency`, sees to both), so the data itself needs no lock, only the tables do.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from polygraft.adapters.low_rank import LoraModule
from polygraft.adapters.pins import Place
from polygraft.adapters.pool import RowPool
from polygraft.adapters.weights import AdapterWeights
from polygraft.kernels.grouped import Part, RankStack
from polygraft.kernels.rank_pool import SitePool
from polygraft.server.engine.changed_rows import PlacedChanges
from polygraft.server.engine.messages import AdapterShare
from polygraft.server.engine.placed_changes import place_changes, placed_bytes
from polygraft.server.engine.sites import Site

ROW_UNIT = 16  # rank rows are allocated in units of this many


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rank rows [row0, row0 + count), the same in every site; count is the class."""

    row0: int
    count: int


class AdapterBank:
    """Implements `adapters.residency.DeviceTier` over the rank-row pools of every site."""

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        pool_rows: int,
        virtual_token_rows: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pools = [SitePool(site.shape, pool_rows, dtype=dtype, device=device) for site in sites]
        self.stacks: dict[int, RankStack] = {}
        self._sites = list(sites)
        self._place_of = {
            name: (site.index, z) for site in sites for z, name in enumerate(site.names)
        }
        self._allocator = RowPool(pool_rows, unit=ROW_UNIT)
        self._pool_rows = pool_rows
        self._virtual_token_rows = virtual_token_rows
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._lock = threading.Lock()
        self._rows: dict[str, Rows] = {}
        self._prompts: dict[str, Tensor] = {}
        self._prefixes: dict[str, Tensor] = {}
        self._changes: dict[str, PlacedChanges] = {}
        self._freed: SimpleQueue[str] = SimpleQueue()
        self._virtual: dict[str, int] = {}  # rows of virtual tokens of versions that have a place

    @property
    def num_rows(self) -> int:
        """Rank rows of the pool."""
        return self._pool_rows

    @property
    def num_free_rows(self) -> int:
        """Rank rows that no version holds."""
        return self._allocator.num_free

    def fits(self, weights: AdapterWeights) -> str | None:
        """None if the version can ever be resident here, else why not."""
        linear = weights.modules.keys() | weights.changes.biases.keys()
        unknown = sorted(linear - self._place_of.keys())
        if unknown:
            return f"module {unknown[0]} is not one this server applies adapters to"
        if weights.modules and not self._allocator.fits(weights.max_rank):
            return f"rank {weights.max_rank} needs more rows than the pool's {self._pool_rows}"
        rows = self._virtual_rows(weights)
        if rows > self._virtual_token_rows:
            what = f"{weights.num_virtual_tokens} virtual tokens take"
            if not weights.num_virtual_tokens:
                features = ", ".join(weights.changes.features)
                what = f"what it changes besides low-rank updates ({features}) takes"
            return (
                f"{what} {rows} rows of the hidden size, more than this server's "
                f"virtual_token_rows ({self._virtual_token_rows})"
            )
        return None

    def fits_together(self, ranks: Iterable[int]) -> str | None:
        """None if LoRAs of these largest ranks can be resident at the same time, else why not.

        Each fits alone. Blocks are powers of two, so what fits by sum fits in the empty pool.
        """
        rows = sum(self._allocator.block_rows(rank) for rank in ranks if rank)
        if rows > self._pool_rows:
            return f"they take {rows} rank rows together, more than the pool's {self._pool_rows}"
        return None

    @property
    def capacity(self) -> Place:
        """All rows there are."""
        return Place(self._pool_rows, self._virtual_token_rows)

    def place_of(self, digest: str) -> Place:
        """The rows of a version that has a place."""
        rows = self._rows.get(digest)
        return Place(rows.count if rows else 0, self._virtual.get(digest, 0))

    def fits_beside(self, kept: Collection[str], ranks: Sequence[int]) -> bool:
        """Whether LoRAs of these largest ranks could all be there if only `kept` stayed."""
        with self._lock:
            row0s = [self._rows[digest].row0 for digest in kept if digest in self._rows]
            return self._allocator.fits_beside(row0s, ranks)

    def _virtual_rows(self, weights: AdapterWeights) -> int:
        """Rows of the hidden size that its virtual tokens take: one each, more with keys and
        values for all layers; and what it changes besides low-rank updates."""
        row_bytes = self._hidden_size * self._dtype.itemsize
        changed = -(-placed_bytes(weights, self._sites, self._place_of) // row_bytes)
        if weights.prefix is None:
            return weights.num_virtual_tokens + changed
        return -(-weights.prefix.numel() // self._hidden_size) + changed

    def reserve(self, digest: str, weights: AdapterWeights) -> bool:
        """Take a place for a version; False when there is no room of its size right now."""
        with self._lock:
            virtual = self._virtual_rows(weights)
            if sum(self._virtual.values()) + virtual > self._virtual_token_rows:
                return False
            if weights.modules:
                count = self._allocator.block_rows(weights.max_rank)
                row0 = self._allocator.allocate(count)
                if row0 is None:
                    return False
                self._rows[digest] = Rows(row0, count)
            if virtual:
                self._virtual[digest] = virtual
        return True

    def copy(self, digest: str, weights: AdapterWeights) -> None:
        """Fill the reserved place. Rows that the version does not use are zeroed."""
        rows = self._rows.get(digest)
        changes, modules = place_changes(weights, self._sites, self._place_of)
        if changes is not None:
            changes = self._placed_changes(changes)
            with self._lock:
                self._changes[digest] = changes
        if rows is not None:
            self._write_rows(rows, modules)
        for table, tensor in (
            (self._prompts, weights.prompt_embeddings),
            (self._prefixes, weights.prefix),
        ):
            if tensor is not None:
                placed = self._placed(tensor)
                with self._lock:
                    table[digest] = placed

    def _write_rows(self, rows: Rows, modules: Mapping[str, LoraModule]) -> None:
        for pool in self.pools:
            pool.clear(rows.row0, rows.count)
        for name, module in modules.items():
            site, z = self._place_of[name]
            self.pools[site].write(rows.row0, z, module.lora_a, module.lora_b, module.scaling)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)

    def _placed_changes(self, changes: PlacedChanges) -> PlacedChanges:
        return changes

    def free(self, digest: str) -> None:
        """Give the place of a version back."""
        with self._lock:
            rows = self._rows.pop(digest, None)
            if rows is not None:
                self._allocator.free(rows.row0)
            self._prompts.pop(digest, None)
            self._prefixes.pop(digest, None)
            self._virtual.pop(digest, None)
            self._changes.pop(digest, None)
        self._freed.put(digest)

    def take_freed(self) -> list[str]:
        """The versions that left since the last call. Engine thread only."""
        return [self._freed.get() for _ in range(self._freed.qsize())]

    def rows(self, digest: str) -> Rows | None:
        """Rank rows of a resident version; None without LoRA."""
        return self._rows.get(digest)

    def parts(self, adapters: Iterable[AdapterShare]) -> dict[AdapterShare, Part]:
        """Pool rows and weights of those adapters that are LoRAs, in the order given."""
        parts = {}
        for share in adapters:
            rows = self._rows.get(share.digest)
            others = (self._prompts, self._prefixes, self._changes)
            is_there = rows or any(share.digest in table for table in others)
            assert is_there, "an adapter left the device while in use"
            if rows:
                parts[share] = Part(rows.row0, rows.count, share.weight)
        return parts

    @property
    def has_changes(self) -> bool:
        """Whether any resident version changes more than low-rank updates do."""
        return bool(self._changes)

    def changes(self, digest: str) -> PlacedChanges | None:
        """What a resident version changes besides its rank rows; None if nothing."""
        return self._changes.get(digest)

    def prompt(self, digest: str) -> Tensor | None:
        """Virtual tokens [num_virtual_tokens, hidden_size] of a resident soft prompt."""
        return self._prompts.get(digest)

    def prefix_of(self, digests: Iterable[str]) -> Tensor:
        """Keys and values [num_layers, 2, kv_heads, num_virtual_tokens, head_dim] of the version
        that is a prefix."""
        return next(self._prefixes[digest] for digest in digests if digest in self._prefixes)

    def stack(self, rank_rows: int) -> RankStack:
        """The stack of one rank class. Engine thread only."""
        if rank_rows not in self.stacks:
            self.stacks[rank_rows] = RankStack(self.pools, rank_rows)
        return self.stacks[rank_rows]

    def check_integrity(self) -> None:
        """Raise AssertionError if allocated rows and versions disagree."""
        with self._lock:
            self._allocator.check_integrity()
            held = sum(rows.count for rows in self._rows.values())
            assert held == self._pool_rows - self._allocator.num_free, "rank rows were lost"
            placed = self._prompts.keys() | self._prefixes.keys() | self._changes.keys()
            assert placed <= self._virtual.keys(), "virtual tokens without a place"
