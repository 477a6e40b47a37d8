"""Starts every system in its own process and measures them in turn. Knows no system.

All systems are loaded at once, but only one works at a time. Rounds are interleaved (A B C, B C A,
...), so that a slow spell of the machine meets all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.jobs import make_job
from benchmarks.models import MODELS, adapter_name
from benchmarks.presets import Preset, Setting
from benchmarks.progress import Progress
from benchmarks.report import Measurement, Row
from benchmarks.systems import SYSTEMS, Job
from benchmarks.workload import BASE, Shape, Workload, make_workload

ENTRY = Path(__file__).with_name("serving.py")
WARM_UP_TOKENS = 4
QUIET_PERCENT = 15.0  # of all cores
QUIET_WAIT = 4.0  # seconds at most


class WorkerFailed(Exception):
    """A system's process ended or answered nonsense; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured, and why systems are missing from it."""

    rows: list[Row]
    failures: list[WorkerFailed]


class Worker:
    """The parent's side of one system's process."""

    def __init__(self, system: str, job: Job) -> None:
        self.system = system
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 closed in close()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(ENTRY), "--worker", system],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self._send(asdict(job))

    def wait_until_ready(self) -> None:
        """Block until the system has loaded base and adapters."""
        self._receive()

    def measure(self, workload: Workload) -> Measurement:
        """Run a workload in the process."""
        self._send(workload.to_json())
        return Measurement.from_json(self._receive())

    def close(self) -> None:
        """End the process: it leaves by itself when its input ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message, default=str) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed() from error

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed()
        message: dict[str, Any] = json.loads(line)
        return message

    def _failed(self) -> WorkerFailed:
        self.log.seek(0)
        return WorkerFailed(f"system {self.system} failed:\n{self.log.read()[-4000:]}")


class Workers:
    """Every system's process, as a context."""

    def __init__(self, systems: Sequence[str], job: Job) -> None:
        bare = replace(job, adapters={})
        self.workers = {
            system: Worker(system, job if SYSTEMS[system].takes_adapters else bare)
            for system in systems
        }
        self.failures: dict[str, WorkerFailed] = {}  # systems that are measured no more

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def in_turn(self, setting: Setting, round_index: int) -> list[str]:
        """The systems that the setting measures, each round beginning with another one."""
        names = [n for n in measured_by(setting, self.workers) if n not in self.failures]
        first = round_index % max(1, len(names))
        return names[first:] + names[:first]

    def measure(self, system: str, workload: Workload) -> list[Measurement]:
        """One measurement; none, and none ever after, if the system fails."""
        wait_until_quiet()
        try:
            return [self.workers[system].measure(workload)]
        except WorkerFailed as failure:
            self.failures[system] = failure
            return []


def wait_until_quiet() -> None:
    """Some systems spin for a second after their last request, at the cost of whoever is next."""
    end = time.monotonic() + QUIET_WAIT
    while psutil.cpu_percent(interval=0.2) > QUIET_PERCENT and time.monotonic() < end:
        pass


def measured_by(setting: Setting, systems: Iterable[str]) -> list[str]:
    """Those of the systems that can serve the setting."""
    return [name for name in systems if SYSTEMS[name].takes_adapters or setting.num_adapters == 0]


def run_benchmark(
    preset: Preset,
    systems: Sequence[str],
    *,
    dtype: str,
    threads: int,
    seed: int,
    on_progress: Progress,
) -> Outcome:
    """Measure every setting of the preset on every system; one row per system and setting.

    A system that fails is left out, the others go on. `on_progress` is called with what comes
    next, once per workload that is run (see `num_steps`).
    """
    on_progress(f"making {preset.model} and {preset.num_adapters} adapters")
    job = make_job(
        preset.model,
        preset.num_adapters,
        dtype=dtype,
        threads=threads,
        seed=seed,
        max_concurrency=preset.concurrency,
        max_sequence_tokens=preset.prompt_tokens[1] + preset.output_tokens,
    )
    with Workers(systems, job) as workers:
        for system, worker in workers.workers.items():
            on_progress(f"loading and warming up {system}")
            num_adapters = preset.num_adapters if SYSTEMS[system].takes_adapters else 0
            try:
                worker.wait_until_ready()
            except WorkerFailed as failure:
                workers.failures[system] = failure
            else:
                workers.measure(system, warm_up_workload(preset, num_adapters, seed))
        rows = _measure_settings(preset, workers, dtype, seed, on_progress)
        return Outcome(rows, list(workers.failures.values()))


def num_steps(preset: Preset, systems: Sequence[str]) -> int:
    """How often `run_benchmark` calls `on_progress`."""
    a_round = sum(len(measured_by(setting, systems)) for setting in preset.settings)
    return 1 + len(systems) + preset.num_rounds * a_round


def _measure_settings(
    preset: Preset,
    workers: Workers,
    dtype: str,
    seed: int,
    on_progress: Progress,
) -> list[Row]:
    """Whole rounds of all settings: a slow spell meets settings that are compared alike."""
    workloads = {setting: setting_workload(preset, setting, seed) for setting in preset.settings}
    measured: dict[tuple[Setting, str], list[Measurement]] = {
        (setting, system): []
        for setting in preset.settings
        for system in measured_by(setting, workers.workers)
    }
    for round_index in range(preset.num_rounds):
        for setting, workload in workloads.items():
            for system in workers.in_turn(setting, round_index):
                on_progress(
                    f"{system}: {setting.num_adapters} adapters, concurrency "
                    f"{setting.concurrency}, round {round_index + 1}/{preset.num_rounds}"
                )
                measured[setting, system] += workers.measure(system, workload)
    references: dict[Setting, Measurement] = {}
    return [
        Row.summarize(
            system,
            preset.model,
            dtype,
            setting,
            workloads[setting],
            rounds,
            references.setdefault(setting, rounds[0]),
        )
        for (setting, system), rounds in measured.items()
        if system not in workers.failures
    ]


def setting_workload(preset: Preset, setting: Setting, seed: int) -> Workload:
    """What every system serves in a setting."""
    return make_workload(
        _shape(preset, preset.output_tokens),
        adapter_names(setting.num_adapters),
        num_requests=setting.num_requests,
        concurrency=setting.concurrency,
        seed=seed,
    )


def adapter_names(num_adapters: int) -> list[str]:
    """Whom requests are for: the first so many adapters, or the base."""
    return [adapter_name(index) for index in range(num_adapters)] or [BASE]


def warm_up_workload(preset: Preset, num_adapters: int, seed: int) -> Workload:
    """A few tokens from every adapter at the highest concurrency: allocations and first touches."""
    return make_workload(
        _shape(preset, WARM_UP_TOKENS),
        adapter_names(num_adapters),
        num_requests=preset.concurrency,
        concurrency=preset.concurrency,
        seed=seed + 1,
    )


def _shape(preset: Preset, output_tokens: int) -> Shape:
    least, most = preset.prompt_tokens
    return Shape(MODELS[preset.model]["vocab_size"], least, most, output_tokens)
