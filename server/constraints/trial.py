"""Tries constraints in a process of their own, which is ended when one takes too much of it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from polygraft.adapters.errors import Overloaded
from polygraft.server.constraints.matchers import MAX_SECONDS

_PROGRAM = Path(__file__).with_name("matchers.py")
_PATIENCE = 30.0  # seconds by the clock; the process itself counts its computing time


class Trial:
    """The process: started when needed, and again after its death. Belongs to one thread."""

    def __init__(self, description: str, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._greeting = {
            "tokenizer": description,
            "vocab_size": vocab_size,
            "eos_token_ids": eos_token_ids,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def problem(self, kind: str, text: str) -> str:
        """What is wrong with a constraint, "" if nothing. Raises Overloaded."""
        process = self._process or self._start()
        self._send(process, {"kind": kind, "text": text})
        answer = self._receive(process)
        if answer is not None:
            return str(json.loads(answer)["problem"])
        self.close()
        if process.returncode == -signal.SIGPROF:
            return f"it takes more than {MAX_SECONDS:g} s to compile"
        return "it takes too much memory to compile"

    def interrupt(self) -> None:
        """End the process while another thread waits for it in `problem`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process, if there is one. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # Why isolated: nothing but the installed packages is to be found.
        process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._process = process
        self._send(process, self._greeting)
        return process

    def _send(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[process.stdin.write(data) :]
        except BrokenPipeError:
            pass  # it has died: `_receive` finds out

    def _receive(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """One line; None if the process died."""
        assert process.stdout is not None
        pipe, deadline, line = process.stdout.fileno(), time.monotonic() + _PATIENCE, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise Overloaded(
                    "the server is too busy to compile the constraint.",
                    item="constraint",
                    hint="Retry later.",
                )
            part = os.read(pipe, 1 << 16)
            if not part:
                process.wait()
                return None
            line += part
        return line
