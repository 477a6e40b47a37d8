"""Garbage collection: what nothing has referred to for a day is deleted, in two passes at least.

The first pass that finds an object unreferenced writes the time into `garbage/<n>.json`; a pass
that comes `min_age` seconds later, and finds it so again, deletes it. Before that it marks the
object and looks once more for versions, aliases and claims (`adapters.claims`), so a publish of
the same bytes at the same moment either keeps them or waits and writes them again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from polygraft.adapters.claims import CLAIMS, CONDEMNED, claimed_keys
from polygraft.adapters.errors import AdapterCorrupt
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.log import Log
from polygraft.adapters.references import References, collectable
from polygraft.adapters.stores.protocol import Store

DAY = 24 * 3600.0
KEPT_GENERATIONS = 10
PASSES = "garbage/"
_BATCH = 100
# A collector that was held up longer lets go of what it marked; a mark that is older than the
# second figure was left by one that died.
_HOLD_SECONDS, _ABANDONED_SECONDS = 30.0, 120.0


@dataclass
class GarbageReport:
    """What one pass did, or with `dry_run` would have done."""

    dry_run: bool = False
    deleted: list[str] = field(default_factory=list)
    num_bytes: int = 0
    waiting: int = 0  # unreferenced, but not for long enough
    spared: list[str] = field(default_factory=list)  # referred to again at the last moment
    pruned_generations: int = 0  # old moves of aliases


class GarbageCollector:
    """Passes over one store; one process runs them. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        *,
        min_age: float = DAY,
        kept_generations: int = KEPT_GENERATIONS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._min_age = min_age
        self._kept_generations = max(1, kept_generations)
        self._clock = clock
        self._passes = Log(store, PASSES)

    def collect(self, *, dry_run: bool = False) -> GarbageReport:
        """One pass. Raises AdapterCorrupt, having deleted nothing, when a record is damaged."""
        report = GarbageReport(dry_run)
        now = self._clock()
        references = References(self._store)
        if not dry_run:
            self._finish_abandoned(references, now)
        since = self._unreferenced(references, now)
        due = [key for key, first_seen in since.items() if now - first_seen >= self._min_age]
        report.waiting = len(since) - len(due)
        if dry_run:
            report.deleted = due
            report.num_bytes = sum(map(self._size, due))
        for start in range(0, 0 if dry_run else len(due), _BATCH):
            self._delete(due[start : start + _BATCH], references, report)
        self._prune_aliases(references, report, now)
        if not dry_run:
            gone = {*report.deleted, *report.spared}
            self._write_pass({key: at for key, at in since.items() if key not in gone})
            self._drop_old_claims(now)
        return report

    def _unreferenced(self, references: References, now: float) -> dict[str, float]:
        """Key -> since when passes have found it unreferenced, manifests first."""
        before = self._last_pass()
        kept = references.keys | claimed_keys(self._store, younger_than=DAY, now=now)
        return {key: before.get(key, now) for key in collectable(self._store) if key not in kept}

    def _delete(self, keys: Sequence[str], references: References, report: GarbageReport) -> None:
        started = time.monotonic()
        with self._marked(keys) as marked:
            references.update()
            kept = references.keys | claimed_keys(self._store, younger_than=DAY, now=self._clock())
            for key in marked:
                if time.monotonic() - started > _HOLD_SECONDS:
                    return  # the next pass goes on
                if key in kept:
                    report.spared.append(key)
                    continue
                size = self._size(key)
                failpoint("garbage.delete")
                self._store.delete(key)
                report.deleted.append(key)
                report.num_bytes += size

    @contextlib.contextmanager
    def _marked(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Those of the keys that nobody else had marked, marked for as long as the block runs."""
        mark = json.dumps({"at": self._clock()}).encode()
        marked = []
        try:
            for key in keys:
                if self._store.create(CONDEMNED + key, mark, durable=False):
                    marked.append(key)
            yield marked
        finally:
            for key in marked:
                self._store.delete(CONDEMNED + key)

    def _finish_abandoned(self, references: References, now: float) -> None:
        """Removes the marks of a collector that died; what it meant to delete comes up again."""
        for mark in self._store.list(CONDEMNED):
            if now - self._written_at(mark) > _ABANDONED_SECONDS:
                self._store.delete(mark)

    def _prune_aliases(self, references: References, report: GarbageReport, now: float) -> None:
        for keys in references.alias_logs().values():
            for key in keys[: -self._kept_generations]:
                if now - self._written_at(key) < self._min_age:
                    break  # the others are younger
                report.pruned_generations += 1
                if not report.dry_run:
                    self._store.delete(key)

    def _last_pass(self) -> Mapping[str, float]:
        last: Mapping[str, float] = {}
        for _, entry in self._passes.entries():
            # An entry that cannot be read costs the objects another day.
            last = {} if isinstance(entry, AdapterCorrupt) else entry["since"]
        return last

    def _write_pass(self, since: Mapping[str, float]) -> None:
        keys = self._passes.keys()
        number = self._passes.last_number(keys) + 1
        if self._passes.append(number, {"since": since}) is not None:
            for key in keys:
                self._store.delete(key)

    def _drop_old_claims(self, now: float) -> None:
        for claim in self._store.list(CLAIMS):
            if now - self._written_at(claim) > DAY:
                self._store.delete(claim)

    def _written_at(self, key: str) -> float:
        """What the record says; long ago when it says nothing."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return float(json.loads(self._store.get(key))["at"])
        return 0.0

    def _size(self, key: str) -> int:
        try:
            return self._store.size(key)
        except KeyError:
            return 0
