"""How a comparison shows itself while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from polygraft.trainer.compare.jobs import Job

if TYPE_CHECKING:
    from rich.console import Console


class Unseen:
    """A monitor that shows nothing."""

    def begin(self, jobs: Sequence[Job], kept: int) -> None: ...

    def started(self, job: Job) -> None: ...

    def advanced(self, job: Job, fraction: float) -> None: ...

    def ended(self, job: Job, problem: str | None) -> None: ...


class JobBar:
    """A monitor with one rich progress bar over all jobs, weighed by their steps, and an ETA."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[count]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[busy]}", markup=False),
            console=console,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("", total=None, start=False, count="", busy="")
        self._done = 0
        self._jobs = 0
        self._finished = 0.0
        self._busy: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def begin(self, jobs: Sequence[Job], kept: int) -> None:
        """Show the bar."""
        self._jobs = len(jobs)
        if kept:
            done = "1 job is" if kept == 1 else f"{kept} jobs are"
            self._console.print(f"{done} done already", style="dim")
        if jobs:
            self._progress.start()
            self._progress.update(self._task, total=sum(job.weight for job in jobs))
            self._progress.start_task(self._task)
            self._show()

    def started(self, job: Job) -> None:
        """One more at work."""
        self._busy[_name(job)] = 0.0
        self._show()

    def advanced(self, job: Job, fraction: float) -> None:
        """Its part of the bar. The scoring at its end has no steps, so the last tenth is left."""
        self._busy[_name(job)] = 0.9 * fraction * job.weight
        self._show()

    def ended(self, job: Job, problem: str | None) -> None:
        """A failure is said at once."""
        self._busy.pop(_name(job), None)
        self._done += 1
        self._finished += job.weight
        if problem:
            self._console.print(f"{_name(job)} failed: {problem}", style="red", markup=False)
        self._show()

    def _show(self) -> None:
        self._progress.update(
            self._task,
            completed=self._finished + sum(self._busy.values()),
            count=f"{self._done}/{self._jobs} jobs",
            busy=", ".join(self._busy),
        )


def _name(job: Job) -> str:
    return f"{job.arm} s{job.seed}"
