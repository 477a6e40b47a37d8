"""What a store is: a flat key space of objects that are created once and never updated.

"Create, fail if it exists" is the one primitive that is compare-and-swap on a local disk and on
every object store, so all mutable state is a log of creates (`adapters.log`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

MAX_KEY_LENGTH = 896  # clouds take 1024 bytes, of which the prefix of a store needs some
# Parts start with a letter, digit or "_": no "..", no hidden or temporary names.
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class Store(Protocol):
    """Create-only objects by key. Thread-safe; every method may block on I/O.

    Keys are "/"-separated parts of letters, digits, ".", "_" and "-"; others raise ValueError.
    A store that cannot be reached raises Unavailable, a full one Overloaded (STORAGE_FULL); then
    nothing was created, unless the reply was lost (`adapters.log` finds out).
    """

    def create(self, key: str, data: bytes | Path, *, durable: bool = True) -> bool:
        """True: written, durable and visible. False: the key exists (and is durable).

        `durable` False: the object may be gone after a loss of power, for what only processes
        that live now need to know.
        """
        ...

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes, or a part of them. KeyError if absent."""
        ...

    def get_path(self, key: str) -> Path:
        """A local file with these bytes, to be mapped; never written to. KeyError if absent.

        It stays for a minute at least, and as long as it is open.
        """
        ...

    def size(self, key: str) -> int:
        """Bytes of the object. KeyError if absent."""
        ...

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """Keys that start with `prefix` and sort after `after`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes the object; an absent key is fine. A loss of power may bring it back."""
        ...

    def fetch(self, keys: Sequence[str]) -> None:
        """Brings objects near, so that `get` of each is quick; absent keys are fine."""
        ...

    def has_copy(self, key: str) -> bool:
        """Whether a copy of the object is on this machine; asks nobody else, and uses nothing. A
        store that is on this machine itself has no copies.
        """
        ...

    def drop_copy(self, key: str) -> bool:
        """Forgets a copy of the object on this machine, which may have rotted; False: none."""
        ...


def check_key(key: str) -> str:
    """The key, or ValueError when it could leave the store or hide in it."""
    if len(key) > MAX_KEY_LENGTH or not KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is not a store key")
    return key


def is_url(store: str) -> bool:
    """Whether a store is named by a URL; else it is a directory."""
    return "://" in store
