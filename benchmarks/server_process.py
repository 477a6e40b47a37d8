"""A server in a process of its own: start it, wait for it, find its descendants, end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import psutil

POLL = 0.1  # seconds between two looks at whether it answers
GRACE = 20.0  # seconds from SIGTERM to SIGKILL


class ServerFailed(Exception):
    """It ended, or did not answer in time; the message carries the end of its log."""


class ServerProcess:
    """A running server and what it started, as a context. What it prints goes to a log file."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str] = {}) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 closed in close()
        # Why a session: ending the group also ends descendants whose parent died first.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def wait_until(self, answers: Callable[[], bool], *, timeout: float) -> None:
        """Block until `answers()`; ServerFailed if the process ends or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while not answers():
            if self._process.poll() is not None:
                raise ServerFailed(f"exit code {self._process.returncode}:\n{self.log()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"no answer within {timeout:g} s:\n{self.log()}")
            time.sleep(POLL)

    def process_ids(self) -> list[int]:
        """The process and all its descendants, so far."""
        process = psutil.Process(self._process.pid)
        return [process.pid, *(child.pid for child in process.children(recursive=True))]

    def log(self) -> str:
        """The end of what it printed."""
        self._log.seek(0)
        return self._log.read()[-4000:]

    def close(self) -> None:
        """SIGTERM to the process, and SIGKILL to whatever of its group is left after a grace."""
        self._process.terminate()
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._kill_group()
            self._process.wait()
            self._log.close()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # nothing is left of it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
