"""Linear sites: sibling projections of one input, run as one matrix product plus one LoRA update.

`Member` modules replace q_proj, k_proj, v_proj and so on inside the transformers model. The first
member that sees a new input runs the whole site, the others take their slice of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from polygraft.adapters.low_rank import LoraModule
from polygraft.kernels.linear import WeightFormat, make_linear
from polygraft.kernels.rank_pool import SiteShape
from polygraft.server.engine.batch import StepSlot
from polygraft.server.engine.memory import return_freed

_SITES_PER_RETURN = 8
_ROWS_PER_NORM = 64


class Site:
    """One linear site of the model. `index` is its place in every pool and stack."""

    def __init__(
        self,
        index: int,
        names: Sequence[str],
        modules: Sequence[nn.Module],
        weight_format: WeightFormat,
    ) -> None:
        self.index = index
        self.names = tuple(names)
        weights = [_weight(module) for module in modules]
        biases = [b for module in modules if isinstance(b := getattr(module, "bias", None), Tensor)]
        self.shape = SiteShape(weights[0].shape[1], tuple(w.shape[0] for w in weights))
        bias = torch.cat([b.detach() for b in biases]) if biases else None
        self._squared_norms = torch.cat([_squared_norms(w) for w in weights])  # [out_features]
        self.bias = bias
        self.linear = make_linear(torch.cat(weights), bias, weight_format)
        self._x: Tensor | None = None
        self._y: Tensor | None = None

    def run(self, x: Tensor, slot: StepSlot) -> Tensor:
        """The base product and the low-rank updates. x: [num_tokens, in] -> [num_tokens, out]."""
        y = self.linear(x)
        for update in slot.lora:
            update.add_(self.index, x, y)
        return y

    def row_norms(self, z: int, module: LoraModule) -> Tensor:
        """||W + s B A|| of every row of slice z, [out_features], without making B A.

        Why so: W is packed, and only products with it are at hand. In bfloat16 the product is
        rounded, which moves the norm by as many bits less as the update is smaller than W.
        """
        low, high = self.shape.bounds(z)
        s, a, b = module.scaling, module.lora_a.float(), module.lora_b.float()
        product = self.linear(module.lora_a).float()
        if self.bias is not None:
            product -= self.bias.float()
        cross = (product[:, low:high].t() * b).sum(1)
        square = ((b @ (a @ a.t())) * b).sum(1)
        total = self._squared_norms[low:high] + 2 * s * cross + s * s * square
        return total.clamp_min(0).sqrt()

    def output(self, x: Tensor, slot: StepSlot, *, last: bool) -> Tensor:
        """The concatenated output of the site for x [..., in_features], one row per token."""
        if x is self._x and self._y is not None:
            y = self._y
        else:
            y = self.run(x.flatten(0, -2), slot).view(*x.shape[:-1], -1)
            self._x, self._y = x, y
        if last:  # never keep a tensor past the layer
            self._x = self._y = None
        return y


class Member(nn.Module):
    """Stands in for one projection of a site."""

    def __init__(self, site: Site, z: int, slot: StepSlot, replaced: nn.Module) -> None:
        super().__init__()
        self.site = site
        self.slot = slot
        self.low, self.high = site.shape.bounds(z)
        self.is_last = z == len(site.shape.slices) - 1
        # Some models look at `weight` (its dtype or shape) before calling the layer. A view of one
        # element has both and costs nothing.
        weight = replaced.weight
        assert isinstance(weight, Tensor)
        self.weight = weight.detach().new_zeros(1).expand(weight.shape)
        self.bias = None
        self.in_features = site.shape.in_features
        self.out_features = self.high - self.low

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features], one row per token -> [..., out_features]."""
        y = self.site.output(x, self.slot, last=self.is_last)
        return (
            y if self.site.shape.out_features == self.out_features else y[..., self.low : self.high]
        )


def build_sites(
    model: nn.Module,
    groups: Sequence[Sequence[str]],
    slot: StepSlot,
    weight_format: WeightFormat,
    make_site: Callable[[int, Sequence[str], Sequence[nn.Module], WeightFormat], Site] = Site,
) -> list[Site]:
    """Replace the grouped linears of `model` by members of sites, in place."""
    sites = []
    for index, names in enumerate(groups):
        modules = [model.get_submodule(name) for name in names]
        site = make_site(index, names, modules, weight_format)
        for z, (name, module) in enumerate(zip(names, modules, strict=True)):
            model.set_submodule(name, Member(site, z, slot, module))
        sites.append(site)
        if index % _SITES_PER_RETURN == 0:
            return_freed()  # else a converted model is in memory twice when the last is packed
    return sites


def _squared_norms(weight: Tensor) -> Tensor:
    """Of the rows of weight, [out_features] float32.

    Why in parts: they stay in the cache between the cast and the sum, which makes it twenty times
    faster in bfloat16, and the whole of it a tenth of what packing takes.
    """
    starts = range(0, len(weight), _ROWS_PER_NORM)
    parts = (weight[start : start + _ROWS_PER_NORM] for start in starts)
    return torch.cat([torch.linalg.vector_norm(p.float(), dim=1).square() for p in parts])


def _weight(module: nn.Module) -> Tensor:
    """[out_features, in_features]; Conv1D stores the transpose."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    return weight.t().contiguous() if isinstance(module, Conv1D) else weight
