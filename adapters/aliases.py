"""Aliases: names for "the version to use now", moved by compare-and-swap, with all history kept.

Knows no manifests. Writes of one alias must be serialised by the caller within the process;
across processes the log decides.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from polygraft.adapters.alias_records import (
    AliasMove,
    AliasRecord,
    candidate_of,
    decode_move,
    encode_move,
)
from polygraft.adapters.errors import AdapterCorrupt, AliasConflict, GateRefused
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.log import Log
from polygraft.adapters.names import name_path, path_name
from polygraft.adapters.stores.protocol import Store

logger = logging.getLogger(__name__)


class AliasBook:
    """All aliases of a store, held in memory; every move is durable before it is visible.

    `on_move` is told of every move that becomes visible after `load`, by whichever process.
    """

    def __init__(self, store: Store, on_move: Callable[[AliasRecord], None]) -> None:
        self._store = store
        self._on_move = on_move
        self._lock = threading.Lock()
        self._history: dict[tuple[str, str], list[AliasRecord]] = {}
        self._aliases_of: defaultdict[str, set[str]] = defaultdict(set)
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
            histories = [self._history[name, alias] for alias in self._aliases_of.get(name, ())]
            latest = [moves[-1] for moves in histories if moves]
        return sorted((r for r in latest if not r.is_removed), key=lambda r: r.alias)

    def history(self, name: str, alias: str) -> list[AliasRecord]:
        """All moves, the oldest first."""
        with self._lock:
            return list(self._history.get((name, alias), ()))

    def move(self, name: str, alias: str, move: AliasMove) -> AliasRecord:
        """Points the alias at the targets and returns the new record.

        A generation that is not `move.expected_generation` raises AliasConflict. A move to where
        it points already writes nothing. GateRefused when the alias demands a gate for a version
        that comes in, and the move has passed none.
        """
        while True:
            current = self.current(name, alias)
            generation = current.generation if current else 0
            expected = move.expected_generation
            if expected is not None and expected != generation:
                raise conflict(name, alias, expected, generation)
            if current and current.targets == move.targets and not move.policy:
                return current
            _check_cleared(current, move)
            if record := self._append(name, alias, move, current):
                return record
            self._reload(name, alias)  # another process moved it; look again

    def remove(
        self,
        name: str,
        alias: str,
        reason: str,
        by: str = "",
        expected_generation: int | None = None,
    ) -> None:
        """Takes the alias away; its history and its generation count stay."""
        move = AliasMove((), reason=reason, by=by)
        while current := self.current(name, alias):
            if expected_generation not in (None, current.generation):
                raise conflict(name, alias, expected_generation, current.generation)
            if self._append(name, alias, move, current):
                return
            self._reload(name, alias)

    def _append(
        self, name: str, alias: str, move: AliasMove, current: AliasRecord | None
    ) -> AliasRecord | None:
        history = self.history(name, alias)
        generation = history[-1].generation + 1 if history else 1
        failpoint("alias.record")
        log = self._log(name, alias)
        entry = log.append(generation, encode_move(move, current, generation - 1))
        if entry is None:
            return None
        record = decode_move(name, alias, generation, entry)
        with self._lock:
            self._history.setdefault((name, alias), []).append(record)
            self._aliases_of[name].add(alias)
        self._on_move(record)
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
            history.append(decode_move(name, alias, generation, entry))
        with self._lock:
            known = self._history.get((name, alias))
            self._history[name, alias] = history
            self._aliases_of[name].add(alias)
        last = known[-1].generation if known else 0
        for record in history:
            if record.generation > last:
                self._on_move(record)

    def _log(self, name: str, alias: str) -> Log:
        return Log(self._store, f"aliases/{name_path(name)}/{alias}/")


def _check_cleared(current: AliasRecord | None, move: AliasMove) -> None:
    """Why here: whatever moves an alias comes by, an upload that promotes included."""
    if move.is_cleared or current is None or not current.is_gated:
        return
    if candidate_of(current, move.targets) is not None:
        check_ungated(current)


def check_ungated(current: AliasRecord | None) -> None:
    """GateRefused when the alias lets no version in without a gate."""
    if current is None or not current.is_gated:
        return
    raise GateRefused(
        f"{current.adapter_name}@{current.alias} lets no version in that has not passed its gate.",
        item="gate",
        hint="Run `polygraft adapters gate`, or force the move and say why.",
    )


def conflict(name: str, alias: str, expected: int | None, current: int) -> AliasConflict:
    """Somebody else has moved it."""
    return AliasConflict(
        f"{name}@{alias} is at generation {current}, not {expected}.",
        item="expected_generation",
        found=expected,
        allowed=current,
        hint="Read the alias again and decide on what it points to now.",
        metadata={"generation": str(current)},
    )
