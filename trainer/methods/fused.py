"""LoRA through the kernel that serves it: one fused product for a layer and its adapter.

The adapter stays PEFT's, parameter for parameter, and is saved by PEFT; only what a layer computes
goes through `polygraft::lora_linear`: a Triton kernel on a GPU, its plain reference on a CPU. The
one module of the trainer that may import kernels (decision 21).
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from polygraft.kernels.fused.one_adapter import OneAdapterTables, lora_linear
from polygraft.kernels.fused.operator import target_of
from polygraft.trainer.config import Lora
from polygraft.trainer.errors import RecipeError


class FusedLinear(PeftLinear):
    """PEFT's adapted linear layer, computed by the fused operator where one LoRA is on."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x: [..., in_features] -> [..., out_features], of the type of the base's weight."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or kwargs or args:
            other: Tensor = super().forward(x, *args, **kwargs)
            return other
        (name,) = names
        base: Any = self.get_base_layer()
        lora_a: Any = self.lora_A[name]
        lora_b: Any = self.lora_B[name]
        a, b = lora_a.weight, lora_b.weight
        tables = self._tables_for(x, len(a))
        return lora_linear(
            x.to(base.weight.dtype), base.weight, base.bias, a, b, self.scaling[name], tables
        )

    def _tables_for(self, x: Tensor, rank: int) -> OneAdapterTables:
        rows = x.numel() // x.shape[-1]
        if self._tables is None or self._tables.num_rows < rows:
            self._tables = OneAdapterTables.make(rows, rank, x.device)
        return self._tables

    # Why per layer: a copy of the model takes its own along, also one without content.
    _tables: OneAdapterTables | None = None


def use_fused(model: PeftModel, method: Lora) -> PeftModel:
    """Let every adapted layer of `model` compute through the fused operator, in place.

    Raises RecipeError, naming what the operator does not compute.
    """
    _refuse_settings(method)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if type(layer) is not PeftLinear or type(base) is not nn.Linear:
            raise _refused(
                f"it computes plain linear layers, and {name} is a {type(base).__name__}."
            )
    _refuse_device(model.device, model.dtype)
    for layer in layers.values():
        layer.__class__ = FusedLinear
    return model


def _refuse_settings(method: Lora) -> None:
    if method.dropout:
        raise _refused("it has no dropout between a layer's input and the adapter.", "dropout: 0")
    if method.dora:
        raise _refused("it does not compute DoRA's norms.", "dora: false")


def _refuse_device(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cpu":
        return
    if dtype.itemsize != 2:
        raise _refused("on a GPU its tiles are for weights of 16 bits.", "base.dtype: bf16")
    try:
        if device.type != "cuda":
            raise ValueError(f"the fused kernel has no tiles for {device.type}")
        target_of(device)
        import triton  # noqa: F401
    except (ValueError, ImportError) as error:
        raise _refused(f"{error}.") from None


def _refused(why: str, instead: str | None = None) -> RecipeError:
    hint = "Take kernel: peft" + (f", or {instead}" if instead else "")
    return RecipeError(f"fused does not fit: {why}", item="method.kernel", hint=f"{hint}.")
