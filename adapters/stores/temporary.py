"""A folder of one process for files under way, removed by the next process once it is abandoned.

The kernel drops a file lock when its process dies, however it dies, so a folder whose lock can be
taken belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
import weakref
from pathlib import Path


class TemporaryFolder:
    """This object's folder under `root`, locked while it lives; abandoned ones are removed."""

    def __init__(self, root: Path) -> None:
        _sweep(root)
        self.path = root / uuid.uuid4().hex
        # Why the lock before the folder: a sweeper removes folders whose lock it can take.
        descriptor = _lock(_lock_file(self.path))
        self.path.mkdir()
        weakref.finalize(self, _remove, self.path, descriptor, os.getpid())


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Why: a sweeper may have come between the two calls and removed the file.
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


def _remove(folder: Path, descriptor: int, pid: int) -> None:
    if os.getpid() == pid:  # else a fork would remove what its parent uses
        shutil.rmtree(folder, ignore_errors=True)
        _lock_file(folder).unlink(missing_ok=True)
    os.close(descriptor)


def _sweep(root: Path) -> None:
    for lock_file in root.glob("*.lock"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            descriptor = os.open(lock_file, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
                lock_file.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(".lock")
