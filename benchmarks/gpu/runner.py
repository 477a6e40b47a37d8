"""Runs the phases one after the other, each in a process of its own that may fail or be stopped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.bench import read_records
from benchmarks.gpu.phases import Phase
from benchmarks.gpu.record import PhaseResult, Status

GRACE = 5.0  # seconds that a phase has left when it should end by itself


def run_phase(
    phase: Phase, command: Sequence[str], out: Path, seconds: float | None = None
) -> PhaseResult:
    """Run one phase; what it wrote before it failed or was stopped is kept. seconds: not its own.

    command: ends with what tells the program its phase. Errors go to `<phase>.log`.
    """
    limit = phase.seconds if seconds is None else seconds
    records, log = out / f"{phase.name}.jsonl", out / f"{phase.name}.log"
    records.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=None if math.isinf(limit) else limit)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the workers that it started
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    took = time.monotonic() - started
    status: Status = "ok"
    if process.returncode != 0:
        status = "out of time" if took >= limit else "failed"
    note = "" if status == "ok" else log.read_text(errors="replace")[-2000:]
    return PhaseResult(phase.name, status, took, phase.seconds, read_records(records), note)


def phase_command(program: str, arguments: Sequence[str], phase: Phase) -> list[str]:
    """This program again, for one phase."""
    return [sys.executable, "-P", program, *arguments, "--phase", phase.name]
