"""What processes of a race do; a module of its own, so that a spawned one can import it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from polygraft.adapters.errors import AliasConflict
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.stores.protocol import Store


def move_alias(place: str, me: int, count: int) -> list[int]:
    """Move `live` of "sum" until `count` moves are this process's; their generations."""
    store: Store = BucketStore(place) if "://" in place else LocalStore(Path(place))
    registry = Registry(store)
    won: list[int] = []
    while len(won) < count:
        registry.follow()
        current = registry.live("sum")
        assert current is not None
        with contextlib.suppress(AliasConflict):
            moved = registry.move_alias(
                "sum",
                "live",
                3 - current.number,
                expected_generation=current.generation,
                reason=str(me),
            )
            won.append(moved.generation)
    return won
