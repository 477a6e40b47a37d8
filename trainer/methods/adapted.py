"""A base changed in place by a method that PEFT does not have: Houlsby, selective, full.

Offers what the loop uses of a `PeftModel`, and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


class AdaptedModel(nn.Module):
    """A base with trainable tensors in it or beside it; `detach` takes their effect away."""

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._generate: Any = model.generate
        self.settings = dict(settings)
        """What adapter_config.json says of the method."""
        forward = inspect.signature(model.forward).parameters.values()
        # Trainer divides the loss by itself where the model does not.
        self.accepts_loss_kwargs = any(p.kind is p.VAR_KEYWORD for p in forward)

    @property
    def device(self) -> torch.device:
        """Of the base."""
        return self.model.device

    @property
    def config(self) -> Any:
        """Of the base."""
        return self.model.config

    def forward(self, **inputs: Any) -> Any:
        """That of the base, as it is now."""
        return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """That of the base, as it is now."""
        return self._generate(**inputs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base bit for bit as it was, until the end of the block."""
        self._detach()
        try:
            yield
        finally:
            self._attach()

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Trainable tensors by the name under which they are saved."""
        return {
            name.removeprefix("model."): parameter.detach()
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put saved tensors in place. ValueError unless names and shapes are those trained."""
        own = self.trained_state()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
            raise ValueError("the saved tensors are not those of this method on this base")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Trained tensors only: what a checkpoint needs, and no tied weights twice."""
        return self.trained_state()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any
    ) -> Any:
        """The counterpart of `state_dict`."""
        self.load_trained(state_dict)
        return nn.modules.module._IncompatibleKeys([], [])

    def _detach(self) -> None:
        raise NotImplementedError

    def _attach(self) -> None:
        raise NotImplementedError


class ChangedModel(AdaptedModel):
    """A base some of whose own parameters are trained; their start is kept to go back to."""

    def __init__(
        self, model: PreTrainedModel, settings: Mapping[str, Any], trained: set[str]
    ) -> None:
        super().__init__(model, settings)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        self._start = {name: tensor.clone() for name, tensor in self.trained_state().items()}
        self._anchor = self._start
        self._fisher: dict[str, torch.Tensor] = {}
        self._other: dict[str, torch.Tensor] = {}

    def anchor_here(self) -> None:
        """Count distances from the weights as they are now, those of an earlier round."""
        self._anchor = {name: tensor.clone() for name, tensor in self.trained_state().items()}

    def weigh(self, fisher: Mapping[str, torch.Tensor]) -> None:
        """Take the Fisher information of each weight, by name, for `weighed_distance`."""
        self._fisher = dict(fisher)

    def distance(self) -> torch.Tensor:
        """Sum of squared differences to the start (L2-SP, Li et al. 2018, arXiv:1802.01483)."""
        return torch.stack([(d**2).sum() for _, d in self._differences()]).sum()

    def weighed_distance(self) -> torch.Tensor:
        """The same, each weight by its Fisher information (EWC, Kirkpatrick et al. 2017,
        arXiv:1612.00796)."""
        terms = [(self._fisher[name] * d**2).sum() for name, d in self._differences()]
        return torch.stack(terms).sum()

    def kept_tensors(self) -> list[torch.Tensor]:
        """What is held beside the weights: to go back to, to measure from, to weigh with."""
        anchor = [] if self._anchor is self._start else list(self._anchor.values())
        return [*self._start.values(), *anchor, *self._fisher.values()]

    def _differences(self) -> Iterator[tuple[str, torch.Tensor]]:
        trained = dict(self.model.named_parameters())
        for name, anchor in self._anchor.items():
            yield name, trained[name] - anchor

    @torch.no_grad()
    def _detach(self) -> None:
        self._other = {name: tensor.clone() for name, tensor in self.trained_state().items()}
        self.load_trained(self._start)

    @torch.no_grad()
    def _attach(self) -> None:
        self.load_trained(self._other)
        self._other = {}


Adapted = PeftModel | AdaptedModel
"""A base with an adapter of any kind."""
