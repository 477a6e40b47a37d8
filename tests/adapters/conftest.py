"""Both kinds of store, and adapters to publish into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_support.press import Press

from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.memory import MemoryStore
from polygraft.adapters.stores.protocol import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
    else:
        memory = MemoryStore()
        yield memory
        memory.close()


@pytest.fixture
def press(tmp_path: Path) -> Press:
    return Press(tmp_path)
