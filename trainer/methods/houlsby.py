"""Adapter layers (Houlsby et al. 2019, arXiv:1902.00751): a bottleneck behind each sublayer.

    y = x + W_up gelu(W_down x + b_down) + b_up

`W_up` and `b_up` start at zero, so a fresh adapter changes no bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from polygraft.trainer.config import Houlsby
from polygraft.trainer.methods.adapted import AdaptedModel
from polygraft.trainer.methods.layers import ATTENTION, MLP, find_layers, layer_numbers, part_of

START_STD = 0.02


class Bottleneck(nn.Module):
    """x [..., hidden] to x [..., hidden]; the identity at the start, or when switched off."""

    def __init__(self, hidden: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, hidden)
        self.is_on = True
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(size, hidden, generator=generator) * START_STD)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sublayer's output, changed."""
        if not self.is_on:
            return x
        inner = functional.gelu(self.down(x.to(self.down.weight.dtype)))
        added: torch.Tensor = self.up(inner).to(x.dtype)
        return x + added


class HoulsbyModel(AdaptedModel):
    """A frozen base with bottlenecks hooked behind its sublayers."""

    def __init__(self, model: PreTrainedModel, method: Houlsby, seed: int) -> None:
        super().__init__(model, {"peft_type": "HOULSBY", **method.model_dump(mode="json")})
        model.requires_grad_(False)
        hidden = model.config.get_text_config().hidden_size
        generator = torch.Generator().manual_seed(seed)
        _, layers = find_layers(model)
        self.bottlenecks = nn.ModuleDict()
        for number in layer_numbers(method.layers, len(layers)):
            for where in method.where:
                pattern = ATTENTION if where == "attention" else MLP
                bottleneck = Bottleneck(hidden, method.bottleneck, generator).to(model.device)
                part_of(layers[number], pattern, where).register_forward_hook(_Behind(bottleneck))
                self.bottlenecks[f"{number}_{where}"] = bottleneck

    def _detach(self) -> None:
        self._switch(False)

    def _attach(self) -> None:
        self._switch(True)

    def _switch(self, on: bool) -> None:
        for bottleneck in self.bottlenecks.values():
            assert isinstance(bottleneck, Bottleneck)
            bottleneck.is_on = on


class _Behind:
    """A hook that sends the first output of a sublayer through a bottleneck.

    An object and no closure, so that a deep copy of the model has hooks on its own bottlenecks.
    """

    def __init__(self, bottleneck: Bottleneck) -> None:
        self.bottleneck = bottleneck

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.bottleneck(output[0]), *output[1:])
        return self.bottleneck(output)
