"""Linear sites on a device: the base product and the updates of all plain LoRAs in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from polygraft.adapters.low_rank import LoraModule
from polygraft.kernels.fused.tiles import TileConfig
from polygraft.kernels.linear import PackedLinear, WeightFormat
from polygraft.kernels.rank_pool import SitePool
from polygraft.server.engine.batch import StepSlot
from polygraft.server.engine.device.kernels import DeviceKernels
from polygraft.server.engine.device.tables import StepTables
from polygraft.server.engine.sites import Site


@dataclass(slots=True)
class DeviceSlot(StepSlot):
    """The running step as the parts of the model see it."""

    columns: int = 0  # one of COLUMN_CLASSES, or WIDE; 0: no row has a column of the plan
    linear_tiles: Sequence[TileConfig] = ()  # by site
    num_tiles: int = 0  # of attention
    is_decode: bool = True  # which of the two cuts of attention

    def clear(self) -> None:
        """Forget the step."""
        self.slot_mapping, self.attention, self.lora, self.norms = None, None, [], {}
        self.columns, self.linear_tiles = 0, ()


@dataclass(slots=True)
class SiteWork:
    """What sites need that is made after them. One for all of them."""

    tables: StepTables | None = None
    kernels: DeviceKernels | None = None
    pools: list[SitePool] = field(default_factory=list)


class DeviceSite(Site):
    """One launch where a row has rank columns, else the vendor's product."""

    def __init__(
        self,
        index: int,
        names: Sequence[str],
        modules: Sequence[nn.Module],
        weight_format: WeightFormat,
        *,
        work: SiteWork,
    ) -> None:
        super().__init__(index, names, modules, "plain")
        assert isinstance(self.linear, PackedLinear)
        self.weight = self.linear.weight  # [out_features, in_features]
        self._work = work

    def run(self, x: Tensor, slot: StepSlot) -> Tensor:
        """See Site."""
        assert isinstance(slot, DeviceSlot)
        if not slot.columns:
            y = self.linear(x)
        else:
            y = self.fused(x, self.weight, self.bias, slot.linear_tiles[self.index])
        for update in slot.lora:
            update.add_(self.index, x, y)
        return y

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None, config: TileConfig) -> Tensor:
        """The product with `weight` and the updates that stand in the tables."""
        work = self._work
        assert work.kernels is not None
        assert work.tables is not None
        plan = work.tables.columns(config.block_m)
        pool = work.pools[self.index]
        return work.kernels.lora_linear(
            self.index, x.contiguous(), weight, bias, pool, plan, config
        )

    def update(self, x: Tensor, config: TileConfig) -> Tensor:
        """The updates alone, by the same launch: a weight of zeros that takes no memory."""
        zeros = self.weight.new_zeros(1, self.weight.shape[1]).expand(self.weight.shape)
        bias = None if self.bias is None else self.bias.new_zeros(self.bias.shape)
        return self.fused(x, zeros, bias, config)

    def row_norms(self, z: int, module: LoraModule) -> Tensor:
        """See Site; on the host, where adapters are prepared."""
        device = self.weight.device
        there = replace(module, lora_a=module.lora_a.to(device), lora_b=module.lora_b.to(device))
        return super().row_norms(z, there).cpu()
