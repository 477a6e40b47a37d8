"""The optimiser loop: transformers' Trainer with settings that keep it quiet and repeatable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from polygraft.trainer.config import RunConfig
from polygraft.trainer.encode import Encoded
from polygraft.trainer.processes import num_processes
from polygraft.trainer.sampler import LengthGroupedSampler

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def steps_per_epoch(rows: int, config: RunConfig) -> int:
    """Optimiser steps in one pass over the rows."""
    batches = math.ceil(rows / config.optim.batch)
    return math.ceil(math.ceil(batches / num_processes()) / config.optim.accumulate)


def total_steps(rows: int, config: RunConfig) -> int:
    """Optimiser steps of the whole run."""
    return math.ceil(steps_per_epoch(rows, config) * config.optim.epochs)


class _LengthGroupedTrainer(Trainer):
    """Trainer with our order of rows; its own groups by length only columns of token ids.

    `l2sp` times the squared distance from the start is added to the loss of each step, and `ewc`
    times the distance that is weighed by Fisher information.
    """

    l2sp = 0.0
    ewc = 0.0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch; the penalty is shared among those of a step."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not (self.l2sp or self.ewc) or return_outputs:
            return loss
        # Trainer divides by the micro-batches itself where the model does not take their number.
        parts = self.current_gradient_accumulation_steps if self.model_accepts_loss_kwargs else 1
        changed = self.accelerator.unwrap_model(model)
        penalty: Any = 0.0
        if self.l2sp:
            penalty = self.l2sp * changed.distance()
        if self.ewc:
            penalty = penalty + self.ewc * changed.weighed_distance()
        return loss + penalty / parts

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(row.input_ids) for row in rows]
        return LengthGroupedSampler(lengths, self.args.train_batch_size, self.args.seed)


def make_trainer(
    peft_model: Any,
    rows: Sequence[Encoded],
    config: RunConfig,
    *,
    learning_rate: float,
    collator: Callable[[Sequence[Encoded]], Any],
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """A Trainer that logs every step and writes checkpoints where a callback asks for one."""
    optim = config.optim
    steps = total_steps(len(rows), config)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=optim.batch,
        gradient_accumulation_steps=optim.accumulate,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type=_SCHEDULES[optim.schedule],
        warmup_steps=math.ceil(optim.warmup_ratio * steps),
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        max_grad_norm=optim.max_grad_norm,
        bf16=config.runtime.precision == "bf16",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=peft_model.device.type == "cpu",
        dataloader_pin_memory=torch.cuda.is_available(),
        # PEFT's wrapper hides the model's signature, from which Trainer would guess these two.
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=1,
        logging_nan_inf_filter=False,  # would replace a NaN loss by the mean of the others
        disable_tqdm=True,
        report_to=[],
        log_level="error",
        # A frozen base has nothing unused that is trained; looking for it costs a walk per step.
        ddp_find_unused_parameters=False,
        save_strategy="no",
        save_total_limit=1,
    )
    trainer = _LengthGroupedTrainer(
        model=peft_model,
        args=arguments,
        train_dataset=list(rows),
        data_collator=collator,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.l2sp = getattr(config.method, "l2sp", 0.0)
    trainer.ewc = getattr(config.method, "ewc", 0.0)
    return trainer
