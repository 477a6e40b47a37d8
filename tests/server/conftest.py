"""A running service for each test of the front-end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from server_support.service import Service, running_service


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Everything real but the engine; afterwards nothing of any request is left."""
    async with running_service(tmp_path / "store") as running:
        yield running
