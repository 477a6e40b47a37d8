"""Small objects of a remote store on this machine, so that a restart reads one file.

Only a cache: it may be removed at any time, and one that is damaged is begun anew.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from polygraft.adapters.limits import MIB

logger = logging.getLogger(__name__)

_MAX_BYTES = 512 * MIB  # a larger one holds mostly what is gone, and is begun anew


class RecordCache:
    """Bytes by key. Thread-safe; a failure of the disk is a miss, never an error."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        if path.exists() and path.stat().st_size > _MAX_BYTES:
            _remove(path)
        try:
            self._database = _open(path)
        except sqlite3.DatabaseError as error:
            logger.warning("%s is begun anew: %s", path, error)
            _remove(path)
            self._database = _open(path)

    def get(self, key: str) -> bytes | None:
        """The bytes, or None."""
        with self._failures_told():
            query = "SELECT data FROM records WHERE key = ?"
            found = self._database.execute(query, (key,)).fetchone()
            return bytes(found[0]) if found else None
        return None

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are here."""
        wanted = set(keys)
        with self._failures_told():
            rows = self._database.execute("SELECT key FROM records")
            return {key for (key,) in rows if key in wanted}
        return set()

    def put(self, records: Mapping[str, bytes]) -> None:
        """Keeps these too."""
        with self._failures_told(), self._database:
            rows = list(records.items())
            self._database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?)", rows)

    def drop(self, key: str) -> bool:
        """Forgets one; False if it is not here."""
        with self._failures_told(), self._database:
            query = "DELETE FROM records WHERE key = ?"
            return self._database.execute(query, (key,)).rowcount > 0
        return False

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                logger.warning("the cache of records failed: %s", error)


def _open(path: Path) -> sqlite3.Connection:
    # Why WAL and NORMAL: after a loss of power the last writes may be gone, the file is whole.
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID"
        )
    except sqlite3.Error:
        database.close()
        raise
    return database


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
