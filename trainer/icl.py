"""In-context learning: the same rows asked behind 0, 1, 2, ... solved ones, and what that costs.

Solved rows come from the train split alone. A row whose prompt and longest answer no longer fit
the context window is not cut and not asked: it is counted by name and scores as a wrong answer.
Knows neither torch nor the server: whoever can answer rows and count tokens is passed in.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polygraft.trainer.data import Example
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.forms import Form
from polygraft.trainer.progress import Observer, Silent
from polygraft.trainer.scoring import Ask, Prompt, Subject, best_base_prompt, score_subject
from polygraft.trainer.shots import with_shots
from polygraft.trainer.source import Source, max_output_tokens

if TYPE_CHECKING:
    from polygraft.trainer.generate import Answer

SHOTS = (0, 1, 2, 4, 8)
DRAWS = 3
TIMED_ROWS = 3
"""Rows that are asked one by one, for the time of an answer."""

Count = Callable[[Prompt, Sequence[Example]], list[int]]
"""Positions that each row takes before its answer: prompt tokens, virtual ones included."""


@dataclass(frozen=True)
class Asked:
    """Someone who answers: the base, or an adapter, here or on a server."""

    name: str
    ask: Ask
    count: Count
    window: int
    """Positions of the context."""
    prompt: Prompt | None = None
    """What an adapter carries; None for the base, which gets its best wording."""


@dataclass(frozen=True)
class Draw:
    """One choice of solved rows, and how the test rows behind them were answered."""

    shots: tuple[str, ...]
    """Ids of the solved rows."""
    subject: Subject
    prompt_tokens: tuple[int, ...]
    """Per test row, in order; also of those that were too long."""
    too_long: tuple[str, ...]
    """Ids of test rows that no longer fit the window."""
    milliseconds: float | None
    """Median over a few rows asked one by one; None where none fits."""


@dataclass(frozen=True)
class ShotScore:
    """All draws of one number of shots."""

    name: str
    shots: int
    metric: str
    window: int
    draws: tuple[Draw, ...]

    @property
    def values(self) -> list[float]:
        """The metric in percent, per draw."""
        return [draw.subject.value(self.metric) or 0.0 for draw in self.draws]

    @property
    def mean(self) -> float:
        """Over the draws."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the draws; 0 where there is one."""
        return statistics.stdev(self.values) if len(self.draws) > 1 else 0.0

    @property
    def prompt_tokens(self) -> float:
        """Mean per row."""
        return statistics.fmean(n for draw in self.draws for n in draw.prompt_tokens)

    @property
    def window_share(self) -> float:
        """Mean share of the context that the prompt takes, in percent; may pass 100."""
        return 100.0 * self.prompt_tokens / self.window

    @property
    def too_long(self) -> float:
        """Rows that do not fit, mean over the draws."""
        return statistics.fmean(len(draw.too_long) for draw in self.draws)

    @property
    def milliseconds(self) -> float | None:
        """Of an answer, mean over the draws."""
        timed = [draw.milliseconds for draw in self.draws if draw.milliseconds is not None]
        return statistics.fmean(timed) if timed else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "shots": self.shots,
            "metric": self.metric,
            "mean": round(self.mean, 2),
            "spread": round(self.spread, 2),
            "rows": self.draws[0].subject.rows,
            "prompt_tokens": round(self.prompt_tokens, 1),
            "window": self.window,
            "window_share": round(self.window_share, 2),
            "rows_too_long": round(self.too_long, 2),
            "milliseconds": None if self.milliseconds is None else round(self.milliseconds, 2),
            "draws": [
                {
                    "shots": list(draw.shots),
                    "too_long": list(draw.too_long),
                    **draw.subject.as_json(),
                }
                for draw in self.draws
            ],
        }


def score_in_context(
    asked: Asked,
    source: Source,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
    rows: int | None = None,
    observer: Observer | None = None,
) -> list[ShotScore]:
    """Score the test split behind each number of solved train rows; the mean is over `draws`.

    Draws are nested: two shots are the one shot and another. `rows` takes only the first of the
    test split. Raises DataError for plain text, RecipeError for more shots than train rows.
    """
    _check(source, shots, draws)
    tested = source.splits.test[:rows]
    prompt = asked.prompt
    if prompt is None:
        prompt = best_base_prompt(source, source.metric, asked.ask)
    scores = []
    for count in sorted(set(shots)):
        made = []
        for draw in range(draws if count else 1):
            solved = _solved(source, draw, seed, max(shots))[:count]
            made.append(_draw(asked, prompt, solved, tested))
        scores.append(ShotScore(asked.name, count, source.metric, asked.window, tuple(made)))
        said = f"{count} shots: {source.metric} {scores[-1].mean:.1f}"
        (observer or Silent()).note(f"{said}, {scores[-1].window_share:.0f} % of the window")
    return scores


def _check(source: Source, shots: Sequence[int], draws: int) -> None:
    if source.form is Form.TEXT:
        raise DataError("rows of plain text ask nothing, so there is nothing to show solved.")
    if not shots or min(shots) < 0 or draws < 1:
        raise RecipeError("shots must be 0 or more, and at least one draw.", item="--shots")
    if max(shots) > len(source.splits.train):
        raise RecipeError(
            f"{max(shots)} shots are more than the {len(source.splits.train)} train rows.",
            item="--shots",
        )


def _solved(source: Source, draw: int, seed: int, count: int) -> list[Example]:
    return random.Random(f"shots/{seed}/{draw}").sample(source.splits.train, count)


def _draw(asked: Asked, prompt: Prompt, solved: list[Example], rows: Sequence[Example]) -> Draw:
    pairs = [with_shots(prompt, solved, row) for row in rows]
    shown = pairs[0][0]  # the same for all, since it goes by the solved rows
    behind = [row for _, row in pairs]
    tokens = asked.count(shown, behind)
    room = asked.window - max_output_tokens(shown)
    fits = [number <= room for number in tokens]
    milliseconds = None

    def ask(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
        from polygraft.trainer.generate import Answer

        nonlocal milliseconds
        fitting = [row for row, fit in zip(rows, fits, strict=True) if fit]
        answers = iter(asked.ask(prompt, fitting) if fitting else [])
        milliseconds = _time(asked.ask, prompt, fitting[:TIMED_ROWS])
        return [next(answers) if fit else Answer([], "", False) for fit in fits]

    subject = score_subject(asked.name, shown, behind, ask)
    return Draw(
        shots=tuple(row.id for row in solved),
        subject=subject,
        prompt_tokens=tuple(tokens),
        too_long=tuple(row.id for row, fit in zip(rows, fits, strict=True) if not fit),
        milliseconds=milliseconds,
    )


def _time(ask: Ask, prompt: Prompt, rows: Sequence[Example]) -> float | None:
    """Median milliseconds of one answer."""
    times = []
    for row in rows:
        started = time.perf_counter()
        ask(prompt, [row])
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times) if times else None
