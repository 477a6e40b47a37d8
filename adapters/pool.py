"""Which rank rows of the device pool are taken: a buddy allocator. Holds numbers, no tensors.

Blocks are `unit * 2**k` rows, aligned to their size, so freed neighbours merge again and an
allocation fails only when no free block of its size exists (Knowlton 1965, "A fast storage
allocator"). Not thread-safe: the owner of the pool's tables holds its own lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


class RowPool:
    """Rows 0 .. total_rows - 1, given out in blocks. `total_rows` need not be a power of two."""

    def __init__(self, total_rows: int, unit: int = 16) -> None:
        if unit < 1 or unit & (unit - 1):
            raise ValueError(f"unit = {unit} must be a power of two")
        if total_rows < 0 or total_rows % unit:
            raise ValueError(f"total_rows = {total_rows} must be a multiple of unit = {unit}")
        self.total_rows = total_rows
        self.unit = unit
        self._allocated: dict[int, int] = {}  # row0 -> rows of the block
        self._free: dict[int, set[int]] = {}  # rows of the block -> row0s
        self._roots = self._cover(total_rows)
        for row0, rows in self._roots.items():
            self._free.setdefault(rows, set()).add(row0)

    @property
    def num_free(self) -> int:
        """Rows in no allocated block."""
        return self.total_rows - sum(self._allocated.values())

    def block_rows(self, rows: int) -> int:
        """Rows of the block that a request for `rows` takes."""
        if rows < 1:
            raise ValueError(f"rows = {rows} must be at least 1")
        return max(self.unit, 1 << (rows - 1).bit_length())

    def fits(self, rows: int) -> bool:
        """Whether `rows` could be allocated in the empty pool."""
        return self.block_rows(rows) <= max(self._roots.values(), default=0)

    def allocate(self, rows: int) -> int | None:
        """The first row of a free block of at least `rows` rows; None when there is none now."""
        wanted = self.block_rows(rows)
        # Why the smallest block, lowest row: large blocks stay whole for large ranks.
        size = min((s for s, row0s in self._free.items() if row0s and s >= wanted), default=0)
        if not size:
            return None
        row0 = min(self._free[size])
        self._free[size].remove(row0)
        while size > wanted:
            size //= 2
            self._free.setdefault(size, set()).add(row0 + size)
        self._allocated[row0] = size
        return row0

    def free(self, row0: int) -> None:
        """Gives a block back and merges it with its free buddies. KeyError if not allocated."""
        size = self._allocated.pop(row0)
        while row0 not in self._roots or self._roots[row0] != size:
            buddy = row0 ^ size
            if buddy not in self._free.get(size, ()):
                break
            self._free[size].remove(buddy)
            row0 = min(row0, buddy)
            size *= 2
        self._free.setdefault(size, set()).add(row0)

    def fits_beside(self, kept: Collection[int], rows: Iterable[int]) -> bool:
        """Whether all of `rows` could be allocated if only the blocks that begin at `kept` stayed
        where they are."""
        pool = RowPool(self.total_rows, self.unit)
        pool._allocated = dict(self._allocated)
        pool._free = {size: set(row0s) for size, row0s in self._free.items()}
        for row0 in self._allocated.keys() - set(kept):
            pool.free(row0)
        return all(pool.allocate(count) is not None for count in sorted(rows, reverse=True))

    def check_integrity(self) -> None:
        """AssertionError unless blocks tile the pool, aligned, with no two free buddies."""
        free = {row0: size for size, row0s in self._free.items() for row0 in row0s}
        position = 0
        for row0, size in sorted([*free.items(), *self._allocated.items()]):
            assert row0 == position, f"rows {position}..{row0} are lost or held twice"
            assert row0 % size == 0, f"block {row0} of {size} rows is not aligned"
            position += size
        assert position == self.total_rows, f"blocks cover {position} of {self.total_rows} rows"
        for row0, size in free.items():
            merged = self._roots.get(row0) == size or free.get(row0 ^ size) != size
            assert merged, f"free buddies {row0} and {row0 ^ size} of {size} rows are not merged"

    def _cover(self, total_rows: int) -> dict[int, int]:
        """Aligned power-of-two blocks that tile the pool, the largest first: row0 -> rows."""
        roots: dict[int, int] = {}
        row0 = 0
        while row0 < total_rows:
            size = self.unit
            while row0 + 2 * size <= total_rows and row0 % (2 * size) == 0:
                size *= 2
            roots[row0] = size
            row0 += size
        return roots
