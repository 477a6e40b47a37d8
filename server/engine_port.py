"""What the front-end needs of the engine and of the residency, so that either can be replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polygraft.adapters.geometry import BaseGeometry
from polygraft.server.engine.messages import EngineRequest, EngineStats, FairShare


class PlacedAdapters(Protocol):
    """What the device holds of soft prompts and prefixes."""

    def prompt(self, digest: str) -> Tensor | None:
        """Rows [num_virtual_tokens, hidden_size]; None for another kind."""
        ...

    def prefix_of(self, digests: Iterable[str]) -> Tensor:
        """Keys and values [num_layers, 2, kv_heads, num_virtual_tokens, head_dim]."""
        ...


class EnginePort(Protocol):
    """What the front-end needs of `server.engine.engine.Engine`."""

    @property
    def geometry(self) -> BaseGeometry:
        """What adapters are checked against."""
        ...

    @property
    def bank(self) -> PlacedAdapters:
        """The device tier."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a sequence unless the request ignores them."""
        ...

    @property
    def context_length(self) -> int:
        """Positions of one sequence at most."""
        ...

    def fits_together(self, ranks: Sequence[int]) -> str | None:
        """None if LoRAs of these largest ranks can be on the device at once, else why not."""
        ...

    def reserve(
        self, reservation: str, share: FairShare, *, num_requests: int, num_tokens: int
    ) -> None:
        """Room in the queue for prompts that are not tokenised yet. Raises Overloaded."""
        ...

    def unreserve(self, reservation: str) -> None:
        """Give a reservation back. Idempotent."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Queue a request; on success the engine releases its adapters when it ends."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request in any state; unknown ids are ignored."""
        ...

    def try_update(self, digest: str, x: Mapping[str, Tensor]) -> Future[dict[str, Tensor]]:
        """What a resident version adds to the outputs of linear modules, for a self-test."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot."""
        ...


class References(Protocol):
    """What the front-end needs of `adapters.residency.Residency`."""

    def acquire(self, *digests: str) -> None:
        """Take a reference to each version and start loads if needed; never blocks."""
        ...

    def check_room(self, ranks: Mapping[str, int]) -> None:
        """Raises AdapterIncompatible if versions, digest -> largest rank, cannot be on the device
        together because of what is pinned."""
        ...

    def release(self, *digests: str) -> None:
        """Give back one reference to each version."""
        ...
