"""The index of versions that a registry keeps in memory: by name, by number, by digest.

Knows no store and reads no manifest; a version's manifest is read when somebody asks for it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from polygraft.adapters.errors import AdapterCorrupt
from polygraft.adapters.manifest import Manifest


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version.

    `verified`: its manifest declared this server's base. `proven`: the server that published it
    had computed what its probes say.
    """

    adapter_name: str
    number: int
    digest: str
    verified: bool
    created_at: float  # seconds since the epoch
    read_manifest: Callable[[str], Manifest] = field(repr=False, compare=False)
    proven: bool = False

    @property
    def manifest(self) -> Manifest:
        """Read when first asked for; AdapterCorrupt when its stored bytes are damaged."""
        return self.read_manifest(self.digest)


class VersionTable:
    """Thread-safe; no method blocks for longer than the lock is held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, dict[int, VersionRecord]] = {}
        self._places: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)  # by digest
        self._damaged: dict[tuple[str, int], AdapterCorrupt] = {}
        self._last: dict[str, int] = {}

    def replace(
        self,
        name: str,
        records: Mapping[int, VersionRecord],
        damaged: Mapping[int, AdapterCorrupt],
        last: int,
    ) -> None:
        """All that is known of a name; `last` is the highest number ever given."""
        with self._lock:
            for record in self._records.pop(name, {}).values():
                self._unplace(record)
            self._records[name] = {}
            for record in records.values():
                self._place(record)
            for known in [key for key in self._damaged if key[0] == name]:
                del self._damaged[known]
            self._damaged.update({(name, number): error for number, error in damaged.items()})
            self._last[name] = last

    def add(self, record: VersionRecord) -> None:
        """A version that was published now."""
        with self._lock:
            self._place(record)
            last = self._last.get(record.adapter_name, 0)
            self._last[record.adapter_name] = max(last, record.number)

    def remove(self, record: VersionRecord) -> None:
        """A version that was deleted now."""
        with self._lock:
            if self._records.get(record.adapter_name, {}).pop(record.number, None):
                self._unplace(record)

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        with self._lock:
            return sorted(name for name, versions in self._records.items() if versions)

    def of(self, name: str) -> dict[int, VersionRecord]:
        """The versions of a name by number, in order."""
        with self._lock:
            return dict(sorted(self._records.get(name, {}).items()))

    def get(self, name: str, number: int) -> VersionRecord | None:
        """One version; the error of one whose record is damaged is raised."""
        with self._lock:
            if damaged := self._damaged.get((name, number)):
                raise damaged
            return self._records.get(name, {}).get(number)

    def is_damaged(self, name: str, number: int) -> bool:
        """Whether the record of this version could not be read."""
        with self._lock:
            return (name, number) in self._damaged

    def with_digest(self, digest: str) -> list[VersionRecord]:
        """All versions with this content, by name and number."""
        with self._lock:
            places = sorted(self._places.get(digest, ()))
            return [self._records[name][number] for name, number in places]

    def digests(self) -> set[str]:
        """The contents of all versions."""
        with self._lock:
            return set(self._places)

    def last(self, name: str) -> int:
        """The highest number that is known to have been given; 0 for none."""
        with self._lock:
            return self._last.get(name, 0)

    def _place(self, record: VersionRecord) -> None:
        self._records.setdefault(record.adapter_name, {})[record.number] = record
        self._places[record.digest].add((record.adapter_name, record.number))

    def _unplace(self, record: VersionRecord) -> None:
        places = self._places[record.digest]
        places.discard((record.adapter_name, record.number))
        if not places:
            del self._places[record.digest]
