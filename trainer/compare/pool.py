"""Does jobs, several at a time, each in a process of its own with one compute thread.

Why processes: two runs in one process share torch's threads and its random numbers. A worker loads
the libraries once and goes from job to job.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from polygraft.adapters.errors import PolygraftError
from polygraft.trainer.compare.jobs import Job
from polygraft.trainer.errors import Interrupted
from polygraft.trainer.progress import Silent

REPORT_SECONDS = 0.5
"""Least time between two reports of a worker."""


class Monitor(Protocol):
    """Told what happens; called in the process that waits."""

    def begin(self, jobs: Sequence[Job], kept: int) -> None:
        """These jobs will be done; `kept` others are done already."""

    def started(self, job: Job) -> None:
        """A job is being done."""

    def advanced(self, job: Job, fraction: float) -> None:
        """How much of it is done, 0 to 1."""

    def ended(self, job: Job, problem: str | None) -> None:
        """It is done, or has failed."""


@dataclass(frozen=True)
class Ended:
    """A job that is over: with a result, or with a sentence that says why not."""

    job: Job
    record: dict[str, Any] | None
    problem: str | None = None


def run_jobs(jobs: Sequence[Job], parallel: int, monitor: Monitor) -> Iterator[Ended]:
    """Each job as it ends, in whatever order. With `parallel` 1, in this process.

    On Ctrl-C, or when the caller stops, the workers are ended.
    """
    if parallel == 1:
        yield from _here(jobs, monitor)
        return
    workers = [_Worker() for _ in range(min(parallel, len(jobs)))]
    try:
        yield from _shared_out(list(jobs), workers, monitor)
    finally:
        for worker in workers:
            worker.end()


def _here(jobs: Sequence[Job], monitor: Monitor) -> Iterator[Ended]:
    for job in jobs:
        monitor.started(job)
        ended = _attempt(job, partial(monitor.advanced, job))
        monitor.ended(job, ended.problem)
        yield ended


def _shared_out(jobs: list[Job], workers: list[_Worker], monitor: Monitor) -> Iterator[Ended]:
    waiting = jobs[::-1]

    def give(worker: _Worker) -> None:
        if waiting:
            worker.give(waiting.pop())
            assert worker.job is not None
            monitor.started(worker.job)

    for worker in workers:
        give(worker)
    while busy := [worker for worker in workers if worker.job is not None]:
        ready = wait([worker.connection for worker in busy])
        for worker in [worker for worker in busy if worker.connection in ready]:
            job = worker.job
            assert job is not None
            told = worker.hear()
            if isinstance(told, float):
                monitor.advanced(job, told)
                continue
            monitor.ended(job, told.problem)
            yield told
            give(worker)


class _Worker:
    """A process and the job it is at."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._start()

    def give(self, job: Job) -> None:
        """Have it done; a process that died while it waited is replaced."""
        self.job = job
        try:
            self.connection.send(job)
        except ConnectionError:
            self._process.join()
            self._start()
            self.connection.send(job)

    def hear(self) -> float | Ended:
        """What it says next: a fraction, or the end of the job. A dead worker is replaced."""
        assert self.job is not None
        job = self.job
        try:
            told: float | Ended = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self._start()
            told = Ended(job, None, f"its process died (exit code {code}); was memory short?")
        if isinstance(told, Ended):
            self.job = None
        return told

    def end(self) -> None:
        """At once."""
        self._process.terminate()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(connection: Connection) -> None:
    """Do jobs until the other side is gone."""
    os.setsid()  # Ctrl-C is for the parent alone, which then ends us
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            connection.send(fraction)

    try:
        while True:
            job: Job = connection.recv()
            connection.send(_attempt(job, report))
    except (EOFError, ConnectionError):
        return


def _attempt(job: Job, report: Callable[[float], None]) -> Ended:
    """Do a job; a failure is its result. Raises Interrupted and KeyboardInterrupt."""
    from polygraft.trainer.compare.work import do_job

    try:
        return Ended(job, do_job(job, _Steps(report, len(job.recipes))))
    except Interrupted:
        raise
    except PolygraftError as error:
        return Ended(job, None, str(error))
    except Exception as error:  # a bug in one arm shall not cost the others
        return Ended(job, None, f"{type(error).__name__}: {error}")


class _Steps(Silent):
    """Turns a run's steps into the fraction of the job that is done."""

    def __init__(self, report: Callable[[float], None], rounds: int) -> None:
        self._report, self._rounds = report, rounds
        self._round, self._total = -1, 1

    def started(self, total_steps: int) -> None:
        self._round += 1
        self._total = total_steps

    def stepped(self, step: int, loss: float) -> None:
        self._report((self._round + step / self._total) / self._rounds)
