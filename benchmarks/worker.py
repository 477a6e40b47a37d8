"""One system in a process of its own: JSON lines in on stdin, JSON lines out on stdout.

In: the job, then one workload per line; end of input ends the process. Out: `{"ready": true}`, then
one measurement per workload. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.systems import Job, System, load_system
from benchmarks.workload import Workload


def run_worker(name: str) -> None:
    """Load system `name` and measure workloads until the parent closes stdin."""
    out = _take_stdout()
    system = load_system(name, _read_job(sys.stdin.readline()))
    try:
        _send(out, {"ready": True})
        for line in sys.stdin:
            _send(out, measure(system, Workload.from_json(json.loads(line))))
    finally:
        system.close()


def measure(system: System, workload: Workload) -> dict[str, Any]:
    """Run a workload once; the fields are those of `report.Measurement`."""
    cpu_before, start = _cpu_seconds(system), time.perf_counter()
    traces = system.run(workload)
    seconds, cpu_after = time.perf_counter() - start, _cpu_seconds(system)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_after - cpu_before,
        "rss_bytes": sum(process.memory_info().rss for process in _processes(system)),
        "traces": [asdict(trace) for trace in traces],
    }


def _processes(system: System) -> list[psutil.Process]:
    return [psutil.Process(process_id) for process_id in system.process_ids()]


def _cpu_seconds(system: System) -> float:
    times = [process.cpu_times() for process in _processes(system)]
    return float(sum(time.user + time.system for time in times))


def _read_job(line: str) -> Job:
    fields = json.loads(line)
    adapters = {name: Path(path) for name, path in fields.pop("adapters").items()}
    return Job(base=Path(fields.pop("base")), adapters=adapters, **fields)


def _take_stdout() -> TextIO:
    """The real stdout; file descriptor 1 becomes stderr, so that no library can break a line."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def _send(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
