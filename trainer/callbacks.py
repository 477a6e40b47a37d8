"""What happens between optimiser steps: finite checks, history, validation, Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polygraft.trainer.best import BestCheckpoint
from polygraft.trainer.config import Stopping
from polygraft.trainer.divergence import check_magnitude
from polygraft.trainer.errors import TrainingFailed
from polygraft.trainer.evaluation import Evaluation, Evaluator
from polygraft.trainer.processes import any_says
from polygraft.trainer.progress import Observer


class History(TrainerCallback):
    """Appends every step to `metrics.jsonl` and stops the run at the first non-finite number."""

    def __init__(self, path: Path, observer: Observer) -> None:
        self.path = path
        self.observer = observer
        self.started_at = time.monotonic()

    def append(self, **record: Any) -> None:
        """One line of JSON."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Trainer logs once per step."""
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise TrainingFailed(
                    f"{name} is {logs[name]} at step {state.global_step}; nothing was saved.",
                    item="optim.lr",
                    found=logs["learning_rate"],
                    hint="Lower optim.lr, or look for broken rows in the data.",
                )
        self.append(
            step=state.global_step,
            epoch=round(state.epoch or 0.0, 4),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            seconds=round(time.monotonic() - self.started_at, 3),
        )
        self.observer.stepped(state.global_step, logs["loss"])


class Validation(TrainerCallback):
    """Evaluates every `every` steps and at the end; keeps the best; may end the run early."""

    def __init__(
        self,
        evaluator: Evaluator,
        best: BestCheckpoint,
        every: int,
        stopping: Stopping | None,
        on_evaluation: Callable[[Evaluation], None],
        largest_base_weight: float,
    ) -> None:
        self.evaluator = evaluator
        self.best = best
        self.every = every
        self.stopping = stopping
        self.on_evaluation = on_evaluation
        self.largest_base_weight = largest_base_weight
        self.without_improvement = 0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Trainer calls this after every optimiser step."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        check_magnitude(model, self.largest_base_weight)
        previous = self.best.evaluation
        evaluation = self.evaluator(model, state.global_step)
        if not math.isfinite(evaluation.loss):
            raise TrainingFailed(
                f"the validation loss is {evaluation.loss} at step {state.global_step}; "
                "nothing was saved.",
                item="optim.lr",
                hint="Lower optim.lr.",
            )
        self.best.offer(model, evaluation)
        self.on_evaluation(evaluation)
        control.should_save = True
        if self.stopping and previous and not self._improved(evaluation, previous):
            self.without_improvement += 1
            control.should_training_stop |= self.without_improvement >= self.stopping.patience
        else:
            self.without_improvement = 0

    def _improved(self, now: Evaluation, best: Evaluation) -> bool:
        assert self.stopping is not None
        gain = best.loss - now.loss if now.metric == "loss" else now.value - best.value
        return gain > self.stopping.min_delta


class GracefulInterrupt(TrainerCallback):
    """The first Ctrl-C ends the run after the step in progress, with a checkpoint written."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Trainer calls this after every optimiser step."""
        if any_says(self.requested):
            self.requested = True  # Ctrl-C may have reached another process alone
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take SIGINT over; the second one interrupts at once, as usual. Main thread only."""
        try:
            previous = signal.signal(signal.SIGINT, self._request)
        except ValueError:  # not the main thread, where no signal arrives either
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
