"""Launches of paged attention. Tensors on a GPU, or on a CPU under Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.kernels.paged.kernel import paged_attention, paged_combine
from polygraft.kernels.paged.plan import PagedPlan
from polygraft.kernels.paged.tiles import LayerShape, PagedConfig, power_of_two


@dataclass(frozen=True, slots=True)
class PagedScratch:
    """What launches with `splits` > 1 write and read: the parts of every row and head.

    parts: float32, at least rows * heads * splits * value_dim. sums: float32, at least rows * heads
    * splits * 2. Belongs to one stream.
    """

    parts: Tensor
    sums: Tensor

    @classmethod
    def allocate(
        cls, rows: int, config: PagedConfig, layer: LayerShape, device: torch.device
    ) -> PagedScratch:
        """For steps of up to so many rows."""
        count = rows * layer.kv_heads * layer.group * config.splits if config.splits > 1 else 1
        return cls(
            torch.empty(count * layer.value_dim, dtype=torch.float32, device=device),
            torch.empty(count * 2, dtype=torch.float32, device=device),
        )


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: PagedPlan,
    *,
    num_tiles: int,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    config: PagedConfig,
    scratch: PagedScratch | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.attention`: one launch, and one more where the context is split.

    The tiles of the plan must be of `config.rows(heads / kv_heads)` rows at most, and so must those
    of `num_tiles` be that are computed. Without `scratch`, one is made if needed. Raises ValueError
    for what the kernel cannot read.
    """
    if q.stride(1) % 16 or q.stride(0) % 16:
        q = q.contiguous()  # Why: strides that follow the number of rows compile the kernel anew
    layer = _shape(q, keys, values, window, softcap, sinks)
    _check(q, keys, values, plan, layer, config, num_tiles)
    out = q.new_empty(q.shape[0], q.shape[1], layer.value_dim) if out is None else out
    if num_tiles == 0:
        return out
    if scratch is None:
        scratch = PagedScratch.allocate(q.shape[0], config, layer, q.device)
    fixed = constants(layer, plan.capacity.block_size, config)
    paged_attention[(num_tiles, layer.kv_heads, config.splits)](
        q, keys, values, q if sinks is None else sinks, plan.tiles, plan.blocks,
        out, scratch.parts, scratch.sums, scaling,
        q.stride(0), q.stride(1), *keys.stride()[:2], *values.stride()[:2],
        out.stride(0), out.stride(1),
        **fixed, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if config.splits > 1:
        paged_combine[(num_tiles, layer.kv_heads)](
            plan.tiles, out, scratch.parts, scratch.sums, out.stride(0), out.stride(1),
            **{name: fixed[name] for name in COMBINED}, num_warps=config.num_warps,
        )  # fmt: skip
    return out


COMBINED = ("GROUP", "VALUE_DIM", "WINDOW", "SPLITS", "SPLIT", "BLOCK_M", "BLOCK_V")
"""Compile-time arguments that the kernel which adds the parts takes as well."""


def constants(
    layer: LayerShape, block_size: int, config: PagedConfig
) -> dict[str, int | float | bool]:
    """The kernel's compile-time arguments by name."""
    return {
        "GROUP": layer.group,
        "DIM": layer.dim,
        "VALUE_DIM": layer.value_dim,
        "BLOCK_SIZE": block_size,
        "WINDOW": layer.window or 0,
        "SOFTCAP": layer.softcap or 0.0,
        "HAS_SINKS": layer.has_sinks,
        "SPLITS": config.splits,
        "SPLIT": config.split,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_D": max(16, power_of_two(layer.dim)),
        "BLOCK_V": max(16, power_of_two(layer.value_dim)),
    }


def _shape(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> LayerShape:
    group = q.shape[1] // keys.shape[0]
    widths = keys.shape[2], values.shape[2]
    return LayerShape(keys.shape[0], group, *widths, window, softcap, sinks is not None)


def _check(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: PagedPlan,
    layer: LayerShape,
    config: PagedConfig,
    num_tiles: int,
) -> None:
    if (q.shape[1], q.shape[2]) != (layer.kv_heads * layer.group, layer.dim) or (
        keys.shape[:2] != values.shape[:2]
    ):
        raise ValueError(
            f"q {list(q.shape)}, keys {list(keys.shape)} and values {list(values.shape)} do not "
            "belong together: they must be [T, H, D], [Hkv, cells, D] and [Hkv, cells, D_v], H a "
            "multiple of Hkv"
        )
    if plan.capacity.tile_rows > config.rows(layer.group) or num_tiles > plan.capacity.tiles:
        raise ValueError(
            f"the plan is of {plan.capacity.tiles} tiles of {plan.capacity.tile_rows} rows, but "
            f"the kernel computes {num_tiles} tiles of {config.rows(layer.group)}"
        )
    if layer.group > config.block_m or (config.splits > 1 and config.split % config.block_n):
        raise ValueError(f"{config} cannot compute {layer}")
    if any(tensor.stride(2) != 1 for tensor in (q, keys, values)):
        raise ValueError("q, keys and values must have a contiguous last axis")
