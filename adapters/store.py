"""The stores under one name: the protocol, and the two that need no service."""

from __future__ import annotations

from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.memory import MemoryStore
from polygraft.adapters.stores.protocol import Store, check_key

__all__ = ["LocalStore", "MemoryStore", "Store", "check_key"]
