"""Validation during a run: completion loss on all rows, generated answers on some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polygraft.trainer.collate import Collator
from polygraft.trainer.encode import Encoded
from polygraft.trainer.generate import Answer, GreedyGenerator
from polygraft.trainer.metrics import exact_match, rouge_l

_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "rougeL": rouge_l,
    "exact_match": exact_match,
}


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation split."""

    step: int
    loss: float
    """Mean over completion tokens."""
    metric: str
    value: float
    """Percent; the loss where the metric is the loss."""
    answers: list[Answer]

    def is_better_than(self, other: Evaluation | None) -> bool:
        """Higher metric, and at equal metric (as at 0 or 100) lower loss."""
        if other is None:
            return True
        if self.metric == "loss":
            return self.loss < other.loss
        return (self.value, -self.loss) > (other.value, -other.loss)


@dataclass(frozen=True)
class Evaluator:
    """Measures an adapter on validation rows. Never sees the test split."""

    rows: Sequence[Encoded]
    metric: str
    generate_rows: int
    collator: Collator
    make_generator: Callable[[Any], GreedyGenerator]
    batch_rows: int = 32

    def __call__(self, peft_model: Any, step: int) -> Evaluation:
        """The evaluation of the adapter as it is now."""
        loss = completion_loss(peft_model, self.rows, self.collator, self.batch_rows)
        if self.metric == "loss":
            return Evaluation(step, loss, "loss", loss, [])
        shown = self.rows[: self.generate_rows]
        answers = self.make_generator(peft_model)([row.prompt for row in shown])
        references = [row.example.completion for row in shown]
        value = _METRICS[self.metric]([answer.text for answer in answers], references)
        return Evaluation(step, loss, self.metric, value, answers)


@torch.no_grad()
def completion_loss(
    model: Any, rows: Sequence[Encoded], collator: Collator, batch_rows: int
) -> float:
    """Mean cross entropy per completion token over all rows."""
    was_training = model.training
    model.train(False)
    total, tokens = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    try:
        for start in range(0, len(ordered), batch_rows):
            batch = ordered[start : start + batch_rows]
            inputs = {key: value.to(model.device) for key, value in collator(batch).items()}
            count = sum(row.supervised for row in batch)
            total += float(model(**inputs).loss) * count
            tokens += count
    finally:
        model.train(was_training)
    return total / tokens
