"""Validates uploads in another process, so that a hostile file can harm nobody else.

The process is started when the first upload begins, stays warm, and takes one upload at a time. A
file that crashes it, or takes more memory or processor time than its size explains, is refused,
and the next upload gets a new process.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polygraft.adapters.errors import AdapterInvalid, Unavailable
from polygraft.adapters.files import MANIFEST_FILE
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import GIB, MIB, AdapterLimits
from polygraft.adapters.manifest import parse_manifest
from polygraft.adapters.process_records import error_from_json, from_json, to_json
from polygraft.adapters.upload_header import UploadHeader
from polygraft.adapters.validation import ValidatedUpload

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-P", "-m", "polygraft.adapters.validation_worker")
START_SECONDS = 120.0
MAX_ANSWER_BYTES = 64 * MIB
# What reading takes: the mapped file, a copy in a dtype of twice the size, and what a tensor needs
# meanwhile; and the header of 20 000 tensors as Python objects.
MEMORY_FACTOR = 5
MEMORY_BYTES = GIB // 2
CPU_SECONDS = 60
CPU_SECONDS_PER_GIB = 60
# Why so much longer: it is niced, and the engine may have all processors.
WALL_FACTOR = 10
KEPT_VARIABLES = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"})
KEPT_PREFIXES = ("PYTHON", "LD_", "LC_")


class ValidationProcess:
    """`validate` has the contract of `validate_files`. Thread-safe.

    `on_failure` is told why a process was lost: "memory", "cpu", "time", "crash" or "error".
    """

    def __init__(
        self,
        on_failure: Callable[[str], None] = lambda cause: None,
        *,
        command: Sequence[str] = WORKER,
        memory_bytes: int = MEMORY_BYTES,
        cpu_seconds: int = CPU_SECONDS,
        wall_factor: float = WALL_FACTOR,
    ) -> None:
        self._on_failure = on_failure
        self._command = tuple(command)
        self._memory_bytes = memory_bytes
        self._cpu_seconds = cpu_seconds
        self._wall_factor = wall_factor
        self._asking = threading.Lock()  # one validation at a time
        self._starting = threading.Lock()  # guards the process
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_closed = False

    def warm(self) -> None:
        """Starts the process if there is none, without waiting for it."""
        with self._starting:
            if self._process is None and not self._is_closed:
                self._start()

    def validate(
        self,
        header: UploadHeader,
        files: Mapping[str, Path],
        geometry: BaseGeometry,
        limits: AdapterLimits,
    ) -> ValidatedUpload:
        """See `validate_files`; tensors of the result have no values.

        Raises AdapterInvalid (VALIDATION_FAILED) when the process did not survive the files, and
        Unavailable (VALIDATION_UNAVAILABLE) when it cannot be started or the server shuts down.
        """
        cpu_seconds = self._cpu_seconds + round(CPU_SECONDS_PER_GIB * header.size() / GIB)
        request = {
            "memory_bytes": self._memory_bytes + MEMORY_FACTOR * header.size(),
            "cpu_seconds": cpu_seconds,
            "arguments": to_json((header, dict(files), geometry, limits)),
        }
        with self._asking:
            self._await_ready()
            reply = self._ask(request, cpu_seconds * self._wall_factor)
        if "error" in reply:
            raise error_from_json(reply)
        return ValidatedUpload(
            manifest=parse_manifest(reply["manifest"].encode()),
            files={name: path for name, path in files.items() if name != MANIFEST_FILE},
            weights=from_json(reply["weights"]),
            warnings=tuple(reply["warnings"]),
        )

    def close(self) -> None:
        """Ends the process; a validation that runs is Unavailable."""
        self._is_closed = True
        with self._starting:
            if self._process is not None:
                self._process.kill()  # whoever waits for its answer collects it
        with self._asking, self._starting:
            self._stop()

    def _start(self) -> None:
        self._is_ready = False
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=_environment(),
            )
        except OSError as error:
            raise _unavailable(str(error)) from error

    def _stop(self, patience: float = 0.0) -> int | None:
        """Ends the process; how it ended. `patience`: seconds in which it may end by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.wait()

    def _await_ready(self) -> None:
        if self._is_closed:
            raise _unavailable("the server is shutting down")
        self.warm()
        if self._is_ready:
            return
        try:
            self._is_ready = "ready" in self._receive(time.monotonic() + START_SECONDS)
        except (EOFError, TimeoutError, ValueError, OSError) as error:
            _, status = self._lose("crash", f"it did not start: {error}")
            raise _unavailable(f"the process for it did not start (status {status})") from error

    def _ask(self, request: Mapping[str, Any], wall_seconds: float) -> dict[str, Any]:
        try:
            self._send(json.dumps(request).encode() + b"\n")
            reply = self._receive(time.monotonic() + wall_seconds)
        except TimeoutError as error:
            raise self._refusal("time", f"no answer in {wall_seconds:g} s") from error
        except ValueError as error:
            raise self._refusal("error", str(error)) from error
        except (EOFError, OSError) as error:
            raise self._refusal(None, str(error)) from error
        if "failed" in reply:
            raise self._refusal(reply["failed"], reply["detail"])
        return reply

    def _refusal(self, cause: str | None, detail: str) -> AdapterInvalid | Unavailable:
        cause, status = self._lose(cause, detail)
        if self._is_closed:
            return _unavailable("the server is shutting down")
        why = {
            "memory": "needs more memory than files of this size may",
            "cpu": "takes more processor time than files of this size may",
            "time": "takes longer than files of this size may",
            "crash": f"ends the process that does it (status {status})",
        }.get(cause, "fails in an unexpected way")
        return AdapterInvalid(
            f"reading the files {why}, so they cannot be served.",
            reason="VALIDATION_FAILED",
            found=cause,
            hint="Save the adapter again with PEFT's save_pretrained().",
        )

    def _lose(self, cause: str | None, detail: str) -> tuple[str, int | None]:
        """Ends the process and tells why: `cause`, or what its end looks like."""
        with self._starting:
            status = self._stop(patience=1.0 if cause is None else 0.0)
        if cause is None:
            cause = "cpu" if status == -signal.SIGXCPU else "crash"
        if not self._is_closed:
            logger.error("validation process lost (%s, status %s): %s", cause, status, detail)
            self._on_failure(cause)
        return cause, status

    def _send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._process.stdin.fileno(), view) :]

    def _receive(self, deadline: float) -> dict[str, Any]:
        """One line. EOFError when the process has ended, TimeoutError when it is silent."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # select() knows descriptors below 1024 only
        poll.register(descriptor, select.POLLIN)
        received = bytearray()
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError("no answer")
            data = os.read(descriptor, MIB)
            if not data:
                raise EOFError("it has ended")
            received += data
            if len(received) > MAX_ANSWER_BYTES:
                raise ValueError("the answer is too long")
        reply: dict[str, Any] = json.loads(received)
        return reply


def _environment() -> dict[str, str]:
    """What Python needs to start. Why not all: a server may have its store's credentials there."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    return {**kept, "OMP_NUM_THREADS": "1"}


def _unavailable(why: str) -> Unavailable:
    return Unavailable(
        f"uploads cannot be validated now: {why}.",
        reason="VALIDATION_UNAVAILABLE",
        hint="The server's log says more.",
    )
