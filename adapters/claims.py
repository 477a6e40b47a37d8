"""Publishing beside garbage collection: whoever is about to rely on stored objects says so first.

    claims/<nonce>.json        {"keys": [...], "at": ...}   written by a publish, removed at its end
    condemned/<key>            written by a collector before it deletes <key>, removed afterwards

A publish writes its claim, then looks for marks; a collector writes its mark, then looks for
claims. Whatever the order, one of them sees the other: the publish waits, or the collector lets go.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Collection, Iterator

from polygraft.adapters.errors import PolygraftError, Unavailable
from polygraft.adapters.stores.protocol import Store

logger = logging.getLogger(__name__)

CLAIMS = "claims/"
CONDEMNED = "condemned/"
_POLL_SECONDS = 0.02


@contextlib.contextmanager
def claim(store: Store, keys: Collection[str], *, patience: float = 10.0) -> Iterator[None]:
    """While the block runs no collector deletes any of `keys`, and none is being deleted.

    Waits `patience` seconds for a collector that is at one of them, then raises Unavailable.
    """
    name = f"{CLAIMS}{uuid.uuid4().hex}.json"
    record = {"keys": sorted(keys), "at": time.time()}
    store.create(name, json.dumps(record).encode(), durable=False)
    try:
        _wait_for_collector(store, keys, patience)
        yield
    finally:
        try:
            store.delete(name)
        except PolygraftError as error:
            # Why not raise: what was published is published; the claim is forgotten after a day.
            logger.warning("the claim %s stays behind: %s", name, error)


def claimed_keys(store: Store, *, younger_than: float, now: float) -> set[str]:
    """All keys that publishes under way rely on.

    A claim older than `younger_than` seconds was left by a process that died; so was one that
    cannot be read, because claims become visible whole and only a loss of power cuts them.
    """
    keys: set[str] = set()
    for name in store.list(CLAIMS):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            record = json.loads(store.get(name))
            if record["at"] > now - younger_than:
                keys.update(record["keys"])
    return keys


def _wait_for_collector(store: Store, keys: Collection[str], patience: float) -> None:
    deadline = time.monotonic() + patience
    marks = {CONDEMNED + key for key in keys}
    while marks.intersection(store.list(CONDEMNED)):
        if time.monotonic() > deadline:
            raise Unavailable(
                "a garbage collection has stopped while it was at these files.",
                reason="STORE_UNAVAILABLE",
                hint="Retry; if it stays so, run `polygraft store gc`, which ends it.",
            )
        time.sleep(_POLL_SECONDS)
