"""PEFT's own layers with `adapter_names`: what a batch of several adapters costs in plain PEFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.sites import Copy, SiteCase
from benchmarks.gpu.variants import Launch, VariantAbsent


def make(case: SiteCase) -> Launch:
    """Each projection of the site on its own, as in a PEFT model; the results are joined.

    PEFT takes one name for each sample, so each row is a sample of one token. It is eager: every
    product is launched from Python.
    """
    if case.load.rows > 256:
        raise VariantAbsent("peft eager is measured in decode only")
    with torch.inference_mode(False):  # its parameters count their versions
        copies = [_layers(case, copy) for copy in case.weights.copies[:2]]  # not all: it is slow
    names = ["__base__"] * case.load.rows
    for index, segment in enumerate(case.segments):
        names[segment.start : segment.end] = [f"a{index}"] * (segment.end - segment.start)
    x = case.x.unsqueeze(1)

    @torch.inference_mode()
    def launch(index: int) -> Tensor:
        layers = copies[index % len(copies)]
        return torch.cat([layer(x, adapter_names=names) for layer in layers], dim=-1).squeeze(1)

    return launch


def _layers(case: SiteCase, copy: Copy) -> list[nn.Module]:
    from peft import LoraConfig, inject_adapter_in_model

    layers = []
    for z, low, high in case.slices():
        with torch.device("meta"):
            linear = nn.Linear(case.shape.inputs, high - low, bias=False)
        linear.weight = nn.Parameter(copy.weight[low:high], requires_grad=False)
        model: nn.Module = nn.Sequential(linear)
        for index, (row0, rank) in enumerate(case.load.rank_rows()):
            name, pool = f"a{index}", slice(row0, row0 + rank)
            scaling = int(case.weights.scale[row0, z])
            config = LoraConfig(r=rank, lora_alpha=scaling * rank, target_modules=["0"])
            model = inject_adapter_in_model(config, model, adapter_name=name)
            layer: Any = model.get_submodule("0")
            layer.lora_A[name].weight.data = copy.a[pool, z]
            layer.lora_B[name].weight.data = copy.bt[pool, low:high].t().contiguous()
        layers.append(model.get_submodule("0"))
    return layers
