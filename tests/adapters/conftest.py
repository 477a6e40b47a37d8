"""Both kinds of store, and adapters to publish into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_support.press import Press

from polygraft.adapters.store import LocalStore, MemoryStore, Store


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
