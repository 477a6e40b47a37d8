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
        self._other: dict[str, torch.Tensor] = {}

    def distance(self) -> torch.Tensor:
        """Sum of squared differences to the start (L2-SP, Li et al. 2018, arXiv:1802.01483)."""
        trained = dict(self.model.named_parameters())
        return torch.stack(
            [((trained[name] - start) ** 2).sum() for name, start in self._start.items()]
        ).sum()

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
