"""A `polygraft serve` of our own, as a process like any other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from polygraft.trainer.errors import TrainerError

_SERVE = "from polygraft.cli import main; main()"
_GRPC = re.compile(r"^gRPC\s+(\S+:\d+)", re.MULTILINE)
_METRICS = re.compile(r"^metrics\s+(http://\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Addresses:
    """Where the server listens."""

    grpc: str
    metrics: str


class ServerProcess:
    """Starts with the block, ends with it. What it prints goes to `log`."""

    def __init__(self, *, base: str, store: Path, log: Path, threads: int) -> None:
        self.log = log
        self._command = [sys.executable, "-P", "-c", _SERVE, "serve", "--model", base]
        # fp32 as in training, so that scores here and in the run directory mean the same.
        self._command += ["--store", str(store), "--dtype", "float32"]
        self._command += ["--set", f"engine.threads={threads}"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_WAIT_POLICY="PASSIVE"),
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the server
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_ready(self, timeout: float) -> Addresses:
        """Where it listens, once it says so. Raises TrainerError with its last lines if it dies."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            grpc, metrics = _GRPC.search(text), _METRICS.search(text)
            if grpc and metrics and "ready" in text:
                return Addresses(grpc[1], metrics[1])
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        tail = "\n".join(text.splitlines()[-5:])
        raise TrainerError(f"the server did not start within {timeout:g} s:\n{tail}")

    def stop(self, timeout: float = 20.0) -> int:
        """Ask it to end (SIGTERM) and wait; its exit code. The second call changes nothing."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()
