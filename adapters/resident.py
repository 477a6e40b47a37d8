"""The vocabulary of residency: tiers, what the device offers, and the state of one version."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from polygraft.adapters.pins import Place
from polygraft.adapters.weights import AdapterWeights

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0


class Tier(Enum):
    """Where a version is. LOADING: on its way to the device. FAILED: the last load failed."""

    STORE = "store"
    LOADING = "loading"
    HOST = "host"
    DEVICE = "device"
    FAILED = "failed"


class DeviceTier(Protocol):
    """Places for adapters on the device. Implemented by the engine; called from one thread."""

    def fits(self, weights: AdapterWeights) -> str | None:
        """None, or why the adapter can never have a place here."""
        ...

    def reserve(self, digest: str, weights: AdapterWeights) -> bool:
        """Takes a place; False when there is no room of that size now."""
        ...

    def copy(self, digest: str, weights: AdapterWeights) -> None:
        """Fills the reserved place."""
        ...

    def free(self, digest: str) -> None:
        """Gives a place back, filled or not."""
        ...


class ResidencyObserver(Protocol):
    """Told about loads and evictions, from loader threads; must be quick."""

    def loaded(self, digest: str, tier: Tier, seconds: float) -> None:
        """A version reached HOST or DEVICE; `seconds` is the time of reading or copying."""
        ...

    def evicted(self, digest: str, tier: Tier) -> None:
        """A version left HOST or DEVICE."""
        ...


@dataclass(frozen=True, slots=True)
class ResidentVersion:
    """One row of `Residency.snapshot`."""

    digest: str
    tier: Tier
    references: int
    pinned: bool
    nbytes: int  # of the host copy, 0 without one
    on_host: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A load that failed: answered at once until `retry_at` (monotonic seconds)."""

    error: Exception
    count: int
    retry_at: float

    @classmethod
    def after(cls, previous: Failure | None, error: Exception) -> Failure:
        """Doubles the wait with every failure in a row."""
        count = previous.count + 1 if previous else 1
        wait = min(FIRST_RETRY_SECONDS * 2 ** (count - 1), LONGEST_RETRY_SECONDS)
        return cls(error, count, time.monotonic() + wait)


@dataclass(frozen=True, slots=True)
class ResidencyStats:
    """A snapshot for metrics; versions by tier, those in the store only are left out."""

    tiers: Mapping[Tier, int]
    host_bytes: int
    host_bytes_limit: int
    pinned: Place


class Stage(Enum):
    """Where the load or the eviction of one version stands."""

    IDLE = "idle"
    TO_READ = "to_read"  # queued for a reader thread
    READING = "reading"
    TO_PLACE = "to_place"  # on the host, queued for a place on the device
    COPYING = "copying"
    TO_FREE = "to_free"  # off the device for everybody else; its place is being given back


@dataclass(eq=False, slots=True)
class Entry:
    """All that residency knows about one version; guarded by residency's lock."""

    digest: str
    references: int = 0  # requests that want it
    holders: int = 0  # requests that compute with it; each has a reference too
    waiters: int = 0  # calls of load() in progress
    unloaders: int = 0  # calls of unload() in progress
    pinned: bool = False
    host: AdapterWeights | None = None
    on_device: bool = False
    stage: Stage = Stage.IDLE
    failure: Failure | None = None
    last_used: int = 0
    size: tuple[int, int] = (0, 0)  # rank and virtual tokens, known once it has been read
    wanted_at: float = 0.0  # when the load was asked for, monotonic
    placed_at: float = 0.0  # when it came to the device, monotonic
    kept_until: float = 0.0  # until when its host copy goes after others', monotonic
    times_freed: int = 0  # how often its place on the device was given back

    @property
    def is_wanted(self) -> bool:
        """Whether somebody needs it on the device: worth loading, and keeping if possible."""
        return self.references > 0 or self.waiters > 0 or self.pinned

    @property
    def tier(self) -> Tier:
        """See Tier."""
        if self.on_device:
            return Tier.DEVICE
        if self.stage not in (Stage.IDLE, Stage.TO_FREE):
            return Tier.LOADING
        if self.failure is not None:
            return Tier.FAILED
        return Tier.HOST if self.host is not None else Tier.STORE

    @property
    def is_forgettable(self) -> bool:
        """Whether nothing would be lost by forgetting the entry."""
        idle = self.stage is Stage.IDLE and not self.is_wanted and not self.unloaders
        return idle and not self.on_device and self.host is None and self.failure is None

    def describe(self) -> ResidentVersion:
        """The entry as one row of a snapshot."""
        return ResidentVersion(
            digest=self.digest,
            tier=self.tier,
            references=self.references,
            pinned=self.pinned,
            nbytes=self.host.nbytes if self.host else 0,
            on_host=self.host is not None,
        )

    def check_integrity(self) -> None:
        """AssertionError unless counts and stage agree."""
        counts = (self.references, self.holders, self.waiters, self.unloaders)
        assert min(counts) >= 0, f"{self.digest} has negative counts {counts}"
        assert self.holders <= self.references, f"{self.digest} is held without a reference"
        assert self.on_device or not self.holders, f"{self.digest} is held but not on the device"
        loading = self.stage is not Stage.IDLE
        assert not (self.on_device and loading), f"{self.digest} is on the device and {self.stage}"
        if self.stage is Stage.COPYING:
            assert self.host is not None, f"{self.digest} is copied from nothing"
