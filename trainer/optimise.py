"""Runs the optimiser loop with its validations, until the end, an early stop or Ctrl-C."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polygraft.trainer import methods
from polygraft.trainer.best import BestCheckpoint
from polygraft.trainer.callbacks import GracefulInterrupt, History, Validation
from polygraft.trainer.checkpoint import ExactCheckpoint
from polygraft.trainer.collate import Collator
from polygraft.trainer.divergence import largest_base_weight
from polygraft.trainer.errors import TrainingFailed
from polygraft.trainer.evaluation import Evaluation, Evaluator
from polygraft.trainer.loop import make_trainer, steps_per_epoch
from polygraft.trainer.methods.adapted import Adapted
from polygraft.trainer.packing import training_collator
from polygraft.trainer.prepare import Prepared
from polygraft.trainer.progress import Observer
from polygraft.trainer.run_directory import RunDirectory
from polygraft.trainer.source import build_recipe


def optimise(
    peft_model: Adapted,
    prepared: Prepared,
    directory: RunDirectory,
    observer: Observer,
    *,
    resumed: bool,
) -> Evaluation:
    """Train; leave the model with the tensors of its best evaluation, which is returned.

    Raises TrainingFailed when the run diverged, KeyboardInterrupt after Ctrl-C with a checkpoint
    written.
    """
    config = prepared.config
    collator = Collator(prepared.base.eos_token_ids[0])
    evaluator = _evaluator(prepared, collator)
    best = BestCheckpoint(directory.checkpoints / "best")
    history = History(directory.work / "metrics.jsonl", observer)
    journal = _Journal(directory, prepared, history, observer)
    interrupt = GracefulInterrupt()
    every = max(1, round(config.eval.every * steps_per_epoch(len(prepared.train), config)))
    trainer = make_trainer(
        peft_model,
        prepared.train,
        config,
        learning_rate=prepared.learning_rate,
        collator=training_collator(prepared),
        checkpoints=directory.checkpoints,
        callbacks=[
            history,
            Validation(
                evaluator,
                best,
                every,
                config.eval.early_stopping,
                journal.record,
                largest_base_weight(peft_model),
            ),
            interrupt,
            ExactCheckpoint(directory.checkpoints, resumed=resumed),
        ],
    )
    start = None if resumed else evaluator(peft_model, 0)
    if start is not None:
        _check_start(start)
        journal.record(start)
    observer.started(trainer.args.max_steps)
    with interrupt.installed():
        trainer.train(resume_from_checkpoint=True if resumed else None)
    observer.finished()
    if interrupt.requested:
        raise KeyboardInterrupt  # `run` keeps the state
    best.restore(peft_model)
    return _learned(start, best.evaluation)


@dataclass(frozen=True)
class _Journal:
    """Writes each validation to metrics.jsonl and some of its answers to samples.jsonl."""

    directory: RunDirectory
    prepared: Prepared
    history: History
    observer: Observer

    def record(self, evaluation: Evaluation) -> None:
        """Called after every validation."""
        self.history.append(
            step=evaluation.step,
            validation_loss=evaluation.loss,
            metric=evaluation.metric,
            value=evaluation.value,
        )
        count = self.prepared.config.eval.generate.samples
        rows = zip(self.prepared.validation[:count], evaluation.answers, strict=False)
        self.directory.append_lines(
            "samples.jsonl",
            [
                {
                    "step": evaluation.step,
                    "id": row.example.id,
                    "reference": row.example.completion,
                    "answer": answer.text,
                    "stopped": answer.stopped,
                }
                for row, answer in rows
            ],
        )
        self.observer.evaluated(
            evaluation.step, evaluation.loss, evaluation.metric, evaluation.value
        )


def _evaluator(prepared: Prepared, collator: Collator) -> Evaluator:
    base = prepared.base
    recipe = build_recipe(prepared.source.prompt, base.tokenizer, base.configured_eos)
    return Evaluator(
        rows=prepared.validation,
        metric=prepared.config.eval.metric,
        generate_rows=prepared.config.eval.generate.rows,
        collator=collator,
        make_generator=lambda model: methods.generator(base, model, recipe),
    )


def _check_start(start: Evaluation) -> None:
    """A base that is broken from the start is no fault of the learning rate."""
    if not math.isfinite(start.loss):
        raise TrainingFailed(
            f"the validation loss is {start.loss} before the first step; nothing was saved.",
            item="base",
            hint="The base's weights are broken, or init_from's.",
        )


def _learned(start: Evaluation | None, best: Evaluation | None) -> Evaluation:
    """The best evaluation, if it beats the untrained adapter in loss or metric."""
    if best is None:
        raise TrainingFailed("no step was made; nothing was saved.", item="optim.epochs")
    if start is None or best.loss < start.loss or best.is_better_than(start):
        return best
    raise TrainingFailed(
        f"the run diverged: best validation loss {best.loss:.3f}, {start.loss:.3f} before "
        "training; nothing was saved.",
        item="optim.lr",
        hint="Lower optim.lr.",
    )
