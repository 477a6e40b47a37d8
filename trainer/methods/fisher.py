"""Which weights old rows depend on: the diagonal of the Fisher information, for EWC.

    F_i = mean over rows of (d log p(completion | prompt) / d weight_i)^2

by the rows' own completions (the empirical Fisher; Kirkpatrick et al. 2017, arXiv:1612.00796),
scaled to a mean of 1: then `ewc` has the scale of `l2sp`, and a flat Fisher is L2-SP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from polygraft.trainer.collate import Collator
from polygraft.trainer.config import Full, Selective
from polygraft.trainer.encode import Encoded
from polygraft.trainer.errors import DataError
from polygraft.trainer.methods.adapted import ChangedModel

if TYPE_CHECKING:
    from polygraft.trainer.prepare import Prepared
    from polygraft.trainer.progress import Observer


def weigh_by_fisher(model: ChangedModel, prepared: Prepared, observer: Observer) -> None:
    """Measure the recipe's `fisher` rows on the model as it is now. Raises DataError."""
    from polygraft.trainer.mixture import encode_portion, held_out_rows

    config = prepared.config
    assert isinstance(config.method, Full | Selective)
    portion = held_out_rows(config.method.fisher, config.seed)
    limit = config.data.max_length
    rows = encode_portion(portion, prepared.base.tokenizer)
    fitting = [row for row in rows if limit is None or len(row.input_ids) <= limit]
    if not fitting:
        raise DataError("no row fits data.max_length.", item="method.fisher")
    name = portion.ingredient.name
    model.weigh(fisher_diagonal(model, fitting, Collator(prepared.base.eos_token_ids[0])))
    left_out = f", {len(rows) - len(fitting)} were too long" if len(fitting) < len(rows) else ""
    observer.note(f"weights weighed by {len(fitting)} held-out rows of {name}{left_out}")


def fisher_diagonal(
    model: ChangedModel, rows: Sequence[Encoded], collator: Collator
) -> dict[str, torch.Tensor]:
    """Per trained tensor its Fisher information, of its shape; the mean over all weights is 1."""
    trained = {n: p for n, p in model.model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    was_training = model.training
    model.train(False)
    try:
        for row in rows:
            batch = {name: value.to(model.device) for name, value in collator([row]).items()}
            log_likelihood = -model(**batch).loss * row.supervised
            gradients = torch.autograd.grad(log_likelihood, list(trained.values()))
            for name, gradient in zip(trained, gradients, strict=True):
                total[name] += gradient**2
    finally:
        model.train(was_training)
    weights = sum(tensor.numel() for tensor in total.values())
    mean = sum(float(tensor.sum()) for tensor in total.values()) / weights
    if not mean > 0:
        raise DataError("no weight matters to these rows.", item="method.fisher")
    return {name: tensor / mean for name, tensor in total.items()}
