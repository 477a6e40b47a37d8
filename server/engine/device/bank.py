"""The device tier of adapters where the device is not the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polygraft.adapters.low_rank import LoraModule
from polygraft.kernels.rank_pool import SitePool
from polygraft.server.engine.adapter_bank import AdapterBank, Rows
from polygraft.server.engine.changed_rows import PlacedChanges
from polygraft.server.engine.device.copies import AdapterCopies
from polygraft.server.engine.placed_changes import moved
from polygraft.server.engine.sites import Site


class DeviceAdapterBank(AdapterBank):
    """As AdapterBank; a version's rows are put together on the host and copied site by site.

    `copy` returns when all of it has arrived, so a version that is ready can be read by any step
    that is launched from then on.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        pool_rows: int,
        virtual_token_rows: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(
            sites,
            pool_rows=pool_rows,
            virtual_token_rows=virtual_token_rows,
            hidden_size=hidden_size,
            dtype=dtype,
            device=device,
        )
        self._copies = AdapterCopies(device)

    def _write_rows(self, rows: Rows, modules: Mapping[str, LoraModule]) -> None:
        """All rows of the version, zeros included: one block for each pool."""
        host = torch.device("cpu")
        by_site: dict[int, list[tuple[int, LoraModule]]] = {}
        for name, module in modules.items():
            site, z = self._place_of[name]
            by_site.setdefault(site, []).append((z, module))
        for index, pool in enumerate(self.pools):
            if index not in by_site and not pool.is_written(rows.row0, rows.count):
                continue  # zeros stand there already
            image = SitePool(pool.shape, rows.count, dtype=self._dtype, device=host)
            for z, module in by_site.get(index, []):
                image.write(0, z, module.lora_a, module.lora_b, module.scaling)
            own = slice(rows.row0, rows.row0 + rows.count)
            self._copies.copy(pool.a[own], image.a)
            self._copies.copy(pool.bt[own], image.bt)
            self._copies.copy(pool.scale[own], image.scale)
            pool.mark_written(rows.row0, rows.count)
        self._copies.finish()

    def _placed(self, tensor: Tensor) -> Tensor:
        placed = self._copies.place(tensor, self._dtype)
        self._copies.finish()
        return placed

    def _placed_changes(self, changes: PlacedChanges) -> PlacedChanges:
        # Why their own dtype: gains and offsets are float32.
        found = moved(changes, lambda tensor: self._copies.place(tensor, tensor.dtype))
        self._copies.finish()
        return found
