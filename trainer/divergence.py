"""Tells a trained adapter from wreckage: broken, exploded or unmoved tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from polygraft.trainer.errors import TrainingFailed

MAX_GROWTH = 1000.0
"""Largest trained value over the largest value of the frozen base. Healthy runs stay below 10."""


def largest_base_weight(model: nn.Module) -> float:
    """The largest absolute value among the parameters that are not trained, or else among all.

    To be asked before the training of a base itself.
    """
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return max(float(p.detach().abs().max()) for p in frozen or model.parameters())


def check_magnitude(model: nn.Module, largest_base_weight: float) -> None:
    """Raises TrainingFailed when a trained tensor is beyond any sensible scale.

    Why: normalisation layers keep the loss of an exploded adapter finite, so the loss alone does
    not show it.
    """
    limit = MAX_GROWTH * largest_base_weight
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        largest = float(parameter.detach().abs().max())
        if not largest <= limit:  # also where it is NaN
            raise TrainingFailed(
                f"the run diverged: {name} reached {largest:.3g}, where the base's largest "
                f"weight is {largest_base_weight:.3g}; nothing was saved.",
                item="optim.lr",
                hint="Lower optim.lr.",
            )


def check_trained(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> None:
    """Every trained tensor is finite and at least one has moved. Raises TrainingFailed."""
    broken = [name for name, tensor in after.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise TrainingFailed(
            f"{len(broken)} of {len(after)} trained tensors hold NaN or infinite values, first "
            f"{broken[0]}; nothing was saved.",
            hint="Lower optim.lr.",
        )
    if all(bool(torch.equal(before[name], tensor)) for name, tensor in after.items()):
        raise TrainingFailed(
            "no trained tensor moved, so the adapter would change nothing; nothing was saved.",
            hint="Raise optim.lr or optim.epochs.",
        )
