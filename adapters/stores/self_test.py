"""What a server asks of a store before it relies on it: that "create" never overwrites.

Older MinIO and Ceph ignore `If-None-Match`; on such a store two writers would both own a version
number, and one of two promotions would be lost without a word.
"""

from __future__ import annotations

import uuid

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.stores.protocol import Store


def check_create_once(store: Store) -> None:
    """InvalidRequest (UNSAFE_STORE) unless the second create of a key fails and changes nothing.

    Raises Unavailable when the store cannot be reached.
    """
    key = f"probe/{uuid.uuid4().hex}"
    first = key.encode()
    try:
        if not store.create(key, first):
            raise _unsafe("it says that an object exists which nobody made")
        if store.create(key, b"second"):
            raise _unsafe("it overwrites objects instead of refusing to (If-None-Match is ignored)")
        if store.get(key) != first or list(store.list("probe/", after=f"{key[:-1]}")) == []:
            raise _unsafe("it does not show what was written to it")
    finally:
        store.delete(key)


def _unsafe(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the store cannot keep adapters: {why}.",
        reason="UNSAFE_STORE",
        item="store",
        hint="Use S3, GCS, Azure, MinIO since 2024-11, or a directory on a local disk.",
    )
