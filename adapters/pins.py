"""Which versions stay on the device, and on whose account: pins are limited.

Why: what is pinned never makes room, so pins without a limit would leave nothing for everybody
else. At most half of each kind of rows is pinned, and a namespace may have a share of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from polygraft.adapters.errors import AdapterIncompatible, Overloaded


@dataclass(frozen=True, slots=True)
class Place:
    """What a version takes of the device, or what the device has."""

    rank_rows: int
    virtual_rows: int

    def __add__(self, other: Place) -> Place:
        return Place(self.rank_rows + other.rank_rows, self.virtual_rows + other.virtual_rows)

    def within(self, part: float, of: Place) -> bool:
        """Whether it is at most that part of another."""
        return self.rank_rows <= part * of.rank_rows and self.virtual_rows <= part * of.virtual_rows


NOTHING = Place(0, 0)


class Places(Protocol):
    """What pins need to know of the device."""

    @property
    def capacity(self) -> Place:
        """All rows there are."""
        ...

    def place_of(self, digest: str) -> Place:
        """The rows of a version that is there."""
        ...

    def fits_beside(self, kept: Collection[str], ranks: Sequence[int]) -> bool:
        """Whether LoRAs of these largest ranks could all be there if only `kept` stayed."""
        ...


class Pins:
    """Not thread-safe; residency holds its lock.

    `most` and `most_per_namespace` are parts of the device's rows.
    """

    def __init__(
        self, places: Places, *, most: float = 0.5, most_per_namespace: float = 0.5
    ) -> None:
        self._places = places
        self._most = most
        self._most_per_namespace = most_per_namespace
        self._pinned: dict[str, tuple[str, Place]] = {}  # digest -> namespace and rows

    @property
    def rows(self) -> Place:
        """All rows that are pinned."""
        return self._sum(None)

    def add(self, digest: str, namespace: str) -> None:
        """Pin a version that is on the device; again is fine. Raises Overloaded (PIN_LIMIT)."""
        if digest in self._pinned:
            return
        place, capacity = self._places.place_of(digest), self._places.capacity
        for what, held, part in (
            ("all namespaces together", self._sum(None), self._most),
            (f"namespace {namespace!r}", self._sum(namespace), self._most_per_namespace),
        ):
            if not (held + place).within(part, capacity):
                raise Overloaded(
                    f"{what} may pin {_text(capacity, part)}; {_text(held)} are pinned and this "
                    f"version takes {_text(place)}.",
                    reason="PIN_LIMIT",
                    item="pin",
                    found=_text(held + place),
                    allowed=_text(capacity, part),
                    hint="Unload one that is pinned, or load this one without a pin.",
                )
        self._pinned[digest] = (namespace, place)

    def remove(self, digest: str) -> None:
        """Unpin; what is not pinned is fine."""
        self._pinned.pop(digest, None)

    def check_room(self, ranks: Mapping[str, int]) -> None:
        """Raises AdapterIncompatible if versions, digest -> largest rank, can never be on the
        device together as long as what is pinned stays there."""
        wanted = [rank for digest, rank in ranks.items() if rank and digest not in self._pinned]
        if wanted and self._pinned and not self._places.fits_beside(self._pinned.keys(), wanted):
            raise AdapterIncompatible(
                f"ranks {', '.join(map(str, wanted))} have no room beside what is pinned "
                f"({_text(self.rows)} of {_text(self._places.capacity)}).",
                reason="NO_ADAPTER_ROWS",
                item="adapter",
                found=f"ranks {', '.join(map(str, wanted))}",
                hint="Unload pinned adapters, or start the server with a larger pool.",
            )

    def _sum(self, namespace: str | None) -> Place:
        """Of one namespace, or of all."""
        places = (place for owner, place in self._pinned.values() if namespace in (None, owner))
        return sum(places, NOTHING)


def _text(place: Place, part: float = 1) -> str:
    rank_rows, virtual_rows = int(part * place.rank_rows), int(part * place.virtual_rows)
    return f"{rank_rows} rank rows and {virtual_rows} rows of virtual tokens"


class _Unlimited(Pins):
    """For a device of which nothing is known."""

    def __init__(self) -> None:
        """Nothing to keep."""

    @property
    def rows(self) -> Place:
        return NOTHING

    def add(self, digest: str, namespace: str) -> None:
        """Anything may be pinned."""

    def remove(self, digest: str) -> None:
        """Nothing is counted."""

    def check_room(self, ranks: Mapping[str, int]) -> None:
        """Nothing is known to have no room."""


UNLIMITED = _Unlimited()
