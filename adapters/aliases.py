"""Aliases: names for "the version to use now", moved by compare-and-swap, with all history kept.

Knows no manifests. Writes of one alias must be serialised by the caller within the process;
across processes the log decides.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polygraft.adapters.errors import AdapterCorrupt, AliasConflict
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.log import Log
from polygraft.adapters.names import name_path, path_name
from polygraft.adapters.stores.protocol import Store

logger = logging.getLogger(__name__)

WHOLE = 10_000  # the weight of an alias's only target, in 1/10000


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """One move of an alias; `generation` counts moves from 1. A removal has number 0."""

    adapter_name: str
    alias: str
    digest: str
    number: int
    generation: int
    moved_at: float  # seconds since the epoch
    reason: str

    @property
    def is_removed(self) -> bool:
        """Whether this move took the alias away."""
        return self.number == 0


class AliasBook:
    """All aliases of a store, held in memory; every move is durable before it is visible."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._history: dict[tuple[str, str], list[AliasRecord]] = {}
        self._listed: dict[str, int] = {}  # hash of the keys that a log had when it was read

    def load(self, moved: Iterable[str] | None = None) -> None:
        """Reads every alias log that has changed; with `moved`, only those of these records."""
        for log, keys in self._logs(moved).items():
            if keys is not None and self._listed.get(log) == hash(keys):
                continue
            path, alias = log.removeprefix("aliases/").rsplit("/", 1)
            name = path_name(path)
            try:
                # Why not these keys again: the log may have grown since they were listed.
                self._reload(name, alias, None if log in self._listed else keys)
                self._listed[log] = hash(keys)
            except AdapterCorrupt as error:
                # Why not raise: one damaged alias must not keep the others from being served. It
                # resolves to nothing, rather than to where it pointed before the damage.
                logger.error("alias %s@%s is damaged and out of use: %s", name, alias, error)

    def current(self, name: str, alias: str) -> AliasRecord | None:
        """Where the alias points; None when it does not exist."""
        with self._lock:
            history = self._history.get((name, alias))
            return history[-1] if history and not history[-1].is_removed else None

    def of(self, name: str) -> list[AliasRecord]:
        """The aliases of one adapter, sorted."""
        with self._lock:
            latest = [moves[-1] for (owner, _), moves in self._history.items() if owner == name]
        return sorted((r for r in latest if not r.is_removed), key=lambda r: r.alias)

    def history(self, name: str, alias: str) -> list[AliasRecord]:
        """All moves, the oldest first."""
        with self._lock:
            return list(self._history.get((name, alias), ()))

    def move(
        self,
        name: str,
        alias: str,
        *,
        digest: str,
        number: int,
        expected_generation: int | None,
        reason: str,
    ) -> AliasRecord:
        """Points the alias at a version and returns the new record.

        `expected_generation` None moves unconditionally, 0 demands that the alias does not
        exist; anything else that is not the current generation raises AliasConflict. A move to
        where it points already writes nothing.
        """
        while True:
            current = self.current(name, alias)
            generation = current.generation if current else 0
            if expected_generation is not None and expected_generation != generation:
                raise _conflict(name, alias, expected_generation, generation)
            if current and current.number == number:
                return current
            if record := self._append(name, alias, digest, number, reason):
                return record
            self._reload(name, alias)  # another process moved it; look again

    def remove(self, name: str, alias: str, reason: str) -> None:
        """Takes the alias away; its history and its generation count stay."""
        while self.current(name, alias) and not self._append(name, alias, "", 0, reason):
            self._reload(name, alias)

    def _append(
        self, name: str, alias: str, digest: str, number: int, reason: str
    ) -> AliasRecord | None:
        history = self.history(name, alias)
        generation = history[-1].generation + 1 if history else 1
        targets = [{"version": digest, "number": number, "weight": WHOLE}] if number else []
        failpoint("alias.record")
        entry = self._log(name, alias).append(
            generation, {"targets": targets, "previous": generation - 1, "reason": reason}
        )
        if entry is None:
            return None
        record = _record(name, alias, generation, entry)
        with self._lock:
            self._history.setdefault((name, alias), []).append(record)
        return record

    def _logs(self, moved: Iterable[str] | None) -> dict[str, tuple[str, ...] | None]:
        """Logs to look into, each with its keys where they are known."""
        if moved is not None:
            return dict.fromkeys(sorted({key.rpartition("/")[0] for key in moved}))
        keys = list(self._store.list("aliases/"))
        self._store.fetch(keys)
        groups = itertools.groupby(keys, lambda key: key.rpartition("/")[0])
        return {log: tuple(of) for log, of in groups}

    def _reload(self, name: str, alias: str, keys: Sequence[str] | None = None) -> None:
        history = []
        for generation, entry in self._log(name, alias).entries(keys):
            if isinstance(entry, AdapterCorrupt):
                raise entry
            history.append(_record(name, alias, generation, entry))
        with self._lock:
            self._history[name, alias] = history

    def _log(self, name: str, alias: str) -> Log:
        return Log(self._store, f"aliases/{name_path(name)}/{alias}/")


def _record(name: str, alias: str, generation: int, entry: dict[str, Any]) -> AliasRecord:
    target: dict[str, Any] = (
        entry["targets"][0] if entry["targets"] else {"version": "", "number": 0}
    )
    return AliasRecord(
        adapter_name=name,
        alias=alias,
        digest=target["version"],
        number=target["number"],
        generation=generation,
        moved_at=entry["at"],
        reason=entry["reason"],
    )


def _conflict(name: str, alias: str, expected: int, current: int) -> AliasConflict:
    return AliasConflict(
        f"{name}@{alias} is at generation {current}, not {expected}.",
        item="expected_generation",
        found=expected,
        allowed=current,
        hint="Read the alias again and decide on what it points to now.",
        metadata={"generation": str(current)},
    )
