"""What processes of a race do; a module of its own, so that a spawned one can import it."""

from __future__ import annotations

from pathlib import Path

from polygraft.adapters.log import Log
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.stores.protocol import Store


def append_moves(place: str, me: int, count: int) -> list[int]:
    """Append to one log until `count` entries are this process's; their numbers."""
    store: Store = BucketStore(place) if "://" in place else LocalStore(Path(place))
    log = Log(store, "aliases/_/a/live/")
    won: list[int] = []
    while len(won) < count:
        number = log.last_number() + 1
        if log.append(number, {"by": me}) is not None:
            won.append(number)
    return won
