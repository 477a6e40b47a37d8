"""The directory that keeps a server's adapters: made, proven writable, and locked."""

from __future__ import annotations

import fcntl
import os
from contextlib import AsyncExitStack
from pathlib import Path

from polygraft.adapters.store import LocalStore
from polygraft.server.config import ConfigError


def open_store(directory: Path, stack: AsyncExitStack) -> LocalStore:
    """The store in `directory`, which is this server's alone until `stack` ends.

    Why locked: a server holds the index of versions and aliases in memory, so a second one on
    the same directory would answer from an old index. Raises ConfigError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, lock)  # closing it unlocks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{directory} is in use by another server.",
                item="store",
                found=str(directory),
                hint="Stop that one, or give this one a directory of its own with --store.",
            ) from error
        return LocalStore(directory / "store")
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be used: {error.strerror or error}.",
            item="store",
            found=str(directory),
            hint="Give a directory that this user may write, with --store.",
        ) from error
