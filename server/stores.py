"""The store that a server was told to use, proven safe, and this machine's directory beside it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from polygraft.adapters.errors import PolygraftError
from polygraft.adapters.garbage import GarbageCollector
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.stores.protocol import Store, is_url
from polygraft.adapters.stores.self_test import check_create_once
from polygraft.server.config import ConfigError, ServerConfig, StorageConfig
from polygraft.server.store_collector import StoreCollector
from polygraft.server.store_follower import StoreFollower


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """`directory` is this server's alone: uploads under way, and copies of a remote store."""

    store: Store
    directory: Path

    @property
    def staging(self) -> Path:
        """Where uploads wait."""
        return self.directory / "staging"


def open_store(config: ServerConfig, stack: AsyncExitStack) -> OpenedStore:
    """The store of the settings, until `stack` ends. Several servers may use one store.

    Raises ConfigError when it cannot be reached, cannot be written, or would let two writers own
    one version number, and when another server holds the directory.
    """
    try:
        directory = config.local_directory
        directory.mkdir(parents=True, exist_ok=True)
        _lock(directory, stack)
        store = _open(config, directory, stack)
        check_create_once(store)
    except OSError as error:
        raise ConfigError(
            f"{config.store} cannot be used: {error.strerror or error}.",
            item="store",
            found=config.store,
            hint="Give a directory that this user may write, with --store.",
        ) from error
    except ConfigError:
        raise
    except PolygraftError as error:
        raise ConfigError(
            f"{config.store} cannot be used: {error.message}",
            item="store",
            found=config.store,
            hint=error.hint,
        ) from error
    return OpenedStore(store, directory)


def keep_up(
    registry: Registry,
    opened: OpenedStore,
    settings: StorageConfig,
    on_reach: Callable[[bool], None],
    stack: AsyncExitStack,
) -> None:
    """Starts the threads that follow other servers and, where asked for, collect garbage."""
    follower = StoreFollower(
        registry,
        poll_seconds=settings.poll_seconds,
        refresh_seconds=settings.refresh_seconds,
        on_reach=on_reach,
    )
    stack.callback(follower.close)
    if settings.collect_hours:
        collector = StoreCollector(GarbageCollector(opened.store), settings.collect_hours * 3600)
        stack.callback(collector.close)


@contextmanager
def visit_store(config: ServerConfig) -> Iterator[Store]:
    """The store of the settings, for a program beside the servers. Raises ConfigError."""
    path = Path(config.store) / "store"
    if not is_url(config.store) and not path.is_dir():
        raise ConfigError(
            f"{config.store} holds no store.",
            item="store",
            found=config.store,
            hint="Name what `polygraft serve --store` was given.",
        )
    if not is_url(config.store):
        yield LocalStore(path)
        return
    bucket = BucketStore(config.store, timeout=config.storage.timeout)
    try:
        yield bucket
    finally:
        bucket.close()


def _open(config: ServerConfig, directory: Path, stack: AsyncExitStack) -> Store:
    if not is_url(config.store):
        return LocalStore(Path(config.store) / "store")
    bucket = BucketStore(
        config.store,
        directory / "cache",
        cache_bytes=config.storage.cache_bytes,
        timeout=config.storage.timeout,
    )
    stack.callback(bucket.close)
    return bucket


def _lock(directory: Path, stack: AsyncExitStack) -> None:
    """Why: two servers would remove and evict each other's uploads and copies."""
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, lock)  # closing it unlocks
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{directory} is in use by another server.",
            item="store",
            found=str(directory),
            hint="Stop that one. To share its store, give this one a directory of its own with "
            "--set storage.local_dir=DIR; for a store of its own use --store.",
        ) from error
