"""A device tier that counts, complains about misuse, and can be held up or made to fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from polygraft.adapters.pins import Place
from polygraft.adapters.pool import RowPool
from polygraft.adapters.weights import AdapterWeights, LoraModule


def weights_of_rank(rank: int) -> AdapterWeights:
    """A LoRA of this rank; 64 bytes of host memory per rank."""
    module = LoraModule(torch.zeros(rank, 8), torch.zeros(8, rank), 1.0)
    return AdapterWeights("lora", {"m": module})


class FakeDevice:
    """Rank rows without tensors. Every misuse of the DeviceTier protocol is an AssertionError."""

    def __init__(self, rows: int = 64) -> None:
        self.pool = RowPool(rows)
        self.places: dict[str, int] = {}
        self.filled: set[str] = set()
        self.weights: dict[str, AdapterWeights] = {}
        self.copies: Counter[str] = Counter()
        self.copy_error: Exception | None = None
        self.may_copy = threading.Event()
        self.may_copy.set()
        self.misuse: list[str] = []
        self._lock = threading.Lock()

    def fits(self, weights: AdapterWeights) -> str | None:
        """See DeviceTier."""
        return None if self.pool.fits(_rows(weights)) else "its rank is too large"

    def reserve(self, digest: str, weights: AdapterWeights) -> bool:
        """See DeviceTier."""
        with self._lock:
            self._expect(digest not in self.places, f"{digest} was reserved twice")
            row0 = self.pool.allocate(_rows(weights))
            if row0 is not None:
                self.places[digest] = row0
            return row0 is not None

    def copy(self, digest: str, weights: AdapterWeights) -> None:
        """See DeviceTier; waits while `may_copy` is cleared."""
        self._expect(digest in self.places, f"{digest} was copied without a place")
        assert self.may_copy.wait(10)
        if self.copy_error is not None:
            raise self.copy_error
        with self._lock:
            self.copies[digest] += 1
            self.filled.add(digest)
            self.weights[digest] = weights

    def free(self, digest: str) -> None:
        """See DeviceTier."""
        with self._lock:
            self._expect(digest in self.places, f"{digest} was freed without a place")
            self.pool.free(self.places.pop(digest))
            self.filled.discard(digest)
            self.weights.pop(digest, None)

    @property
    def capacity(self) -> Place:
        """See Places."""
        return Place(self.pool.total_rows, 1 << 20)

    def place_of(self, digest: str) -> Place:
        """See Places."""
        return Place(self.pool.block_rows(_rows(self.weights[digest])), 0)

    def fits_beside(self, kept: Collection[str], ranks: Sequence[int]) -> bool:
        """See Places."""
        return self.pool.fits_beside([self.places[digest] for digest in kept], ranks)

    def prompt(self, digest: str) -> Tensor | None:
        """See AdapterBank."""
        return self.weights[digest].prompt_embeddings

    def prefix_of(self, digests: Iterable[str]) -> Tensor:
        """See AdapterBank."""
        prefixes = (self.weights[digest].prefix for digest in digests)
        return next(prefix for prefix in prefixes if prefix is not None)

    def _expect(self, condition: bool, message: str) -> None:
        if not condition:
            self.misuse.append(message)
            raise AssertionError(message)


def _rows(weights: AdapterWeights) -> int:
    return max(weights.max_rank, 1)  # virtual tokens take a place too
