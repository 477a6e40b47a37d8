"""A server's directory: one server at a time, and a clear sentence where it cannot be used."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from polygraft.server.config import ConfigError, ServerConfig
from polygraft.server.stores import open_store


async def test_a_second_server_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    async with AsyncExitStack() as second:
        async with AsyncExitStack() as first:
            open_store(ServerConfig(store=tmp_path), first)
            with pytest.raises(ConfigError, match="in use by another server"):
                open_store(ServerConfig(store=tmp_path), second)
        open_store(ServerConfig(store=tmp_path), second)


async def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        async with AsyncExitStack() as stack:
            with pytest.raises(ConfigError, match="cannot be used"):
                open_store(ServerConfig(store=path), stack)
