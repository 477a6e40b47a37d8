"""What a run reports while it runs, and the terminal's way of showing it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.console import Console


class Observer(Protocol):
    """Told by the run what happens; called on the run's thread, must not block."""

    def note(self, message: str) -> None:
        """A sentence for the user: a choice made, a warning about the data."""

    def started(self, total_steps: int) -> None:
        """Training begins."""

    def stepped(self, step: int, loss: float) -> None:
        """An optimiser step is done."""

    def evaluated(self, step: int, loss: float, metric: str, value: float) -> None:
        """A validation is done."""

    def finished(self) -> None:
        """Training has ended."""


class Silent:
    """An observer that shows nothing."""

    def note(self, message: str) -> None: ...

    def started(self, total_steps: int) -> None: ...

    def stepped(self, step: int, loss: float) -> None: ...

    def evaluated(self, step: int, loss: float, metric: str, value: float) -> None: ...

    def finished(self) -> None: ...


class ProgressBar:
    """An observer with a rich progress bar: steps, time left, live loss and last validation."""

    def __init__(self, console: Console, description: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = console
        self._description = description
        self._smoothed: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            TextColumn("loss [bold]{task.fields[loss]}[/] {task.fields[validation]}"),
            console=console,
        )
        self._task = self._progress.add_task(
            description, total=None, start=False, loss="-", validation=""
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finished()

    def note(self, message: str) -> None:
        """Print above the bar."""
        self._console.print(message, style="dim", markup=False, highlight=False)

    def started(self, total_steps: int) -> None:
        """Show the bar."""
        self._progress.start()
        self._progress.update(self._task, total=total_steps)
        self._progress.start_task(self._task)

    def stepped(self, step: int, loss: float) -> None:
        """Move the bar; the loss shown is smoothed over about ten steps."""
        old = self._smoothed
        self._smoothed = loss if old is None else 0.9 * old + 0.1 * loss
        self._progress.update(self._task, completed=step, loss=f"{self._smoothed:.3f}")

    def evaluated(self, step: int, loss: float, metric: str, value: float) -> None:
        """Show the last validation beside the loss."""
        shown = f"val {loss:.3f}"
        if metric != "loss":
            shown += f" {metric} {value:.1f}"
        self._progress.update(self._task, validation=shown)

    def finished(self) -> None:
        """Leave the bar as it stands."""
        if self._progress.live.is_started:
            self._progress.stop()
