"""Launches of the fused kernel. Tensors on a GPU, or on a CPU under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.kernels.fused.kernel import fused_lora_linear
from polygraft.kernels.fused.tiles import TileConfig

MAX_SLICES = 3


@dataclass(frozen=True, slots=True)
class Scratch:
    """What launches with `split_k` > 1 need; each one leaves it as it found it.

    planes: float32, at least split_k * M * N. arrivals: int32 zeros, at least one per tile. Belongs
    to one stream.
    """

    planes: Tensor
    arrivals: Tensor

    @classmethod
    def allocate(cls, num_elements: int, num_tiles: int, device: torch.device) -> Scratch:
        """num_elements: the largest split_k * M * N that will be launched."""
        planes = torch.empty(num_elements, dtype=torch.float32, device=device)
        return cls(planes, torch.zeros(num_tiles, dtype=torch.int32, device=device))


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: Sequence[int],
    *,
    config: TileConfig,
    scratch: Scratch | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.lora_linear`, in one launch. Raises ValueError for what the kernel cannot read.

    The plan's tiles must be of `config.block_m` rows. Without `scratch`, one is made if needed.
    """
    _check_shapes(x, weight, a, bt, slices)
    y = x.new_empty(x.shape[0], weight.shape[0]) if out is None else out
    _launch(
        (x, weight, bias, a, bt, scale, y),
        (row_columns, tile_columns, column_rows, column_weights),
        config=config,
        scratch=scratch,
        weight_strides=(weight.stride(0), weight.stride(1)),
        pool_strides=(a.stride(0), a.stride(1), bt.stride(0), 0),
        outputs=tuple(slices),
        inputs=(x.shape[1],),
    )
    return y


def lora_linear_input_gradient(
    dy: Tensor,
    weight: Tensor,
    a: Tensor,
    bt: Tensor,
    scale: Tensor,
    row_columns: Tensor,
    tile_columns: Tensor,
    column_rows: Tensor,
    column_weights: Tensor,
    slices: Sequence[int],
    *,
    config: TileConfig,
) -> Tensor:
    """As its twin in `reference`: the same kernel with W transposed and the pools exchanged."""
    dx = dy.new_empty(dy.shape[0], weight.shape[1])
    _check_shapes(dx, weight, a, bt, slices)
    _launch(
        (dy, weight, None, bt, a, scale, dx),
        (row_columns, tile_columns, column_rows, column_weights),
        config=config,
        scratch=None,
        weight_strides=(weight.stride(1), weight.stride(0)),
        pool_strides=(bt.stride(0), 0, a.stride(0), a.stride(1)),
        outputs=(weight.shape[1],),
        inputs=tuple(slices),
    )
    return dx


def _check_shapes(x: Tensor, weight: Tensor, a: Tensor, bt: Tensor, slices: Sequence[int]) -> None:
    outputs, inputs = weight.shape
    found = (x.shape[1], a.shape[1:], bt.shape[1], sum(slices))
    if found != (inputs, (len(slices), inputs), outputs, outputs):
        raise ValueError(
            f"x {list(x.shape)}, weight {list(weight.shape)}, a {list(a.shape)}, bt "
            f"{list(bt.shape)} and slices {list(slices)} do not belong together: they must be "
            "[M, K], [N, K], [P, Z, K], [P, N] and Z widths whose sum is N"
        )
    if not 1 <= len(slices) <= MAX_SLICES:
        raise ValueError(f"{len(slices)} slices; the kernel has 1 to {MAX_SLICES}")


def _check_layout(
    tensors: Sequence[Tensor | None], tables: Sequence[Tensor], config: TileConfig
) -> None:
    x, row_columns, tile_columns = tensors[0], tables[0], tables[1]
    assert x is not None
    planned = row_columns.shape[0] // max(tile_columns.shape[0], 1)
    if planned != config.block_m or row_columns.shape[0] < x.shape[0]:
        raise ValueError(
            f"the plan is of {tile_columns.shape[0]} tiles of {planned} rows, but the kernel "
            f"computes {x.shape[0]} rows in tiles of {config.block_m}"
        )
    for tensor in (x, *tensors[3:]):
        if tensor is not None and tensor.stride(-1) != 1:
            raise ValueError(f"a tensor of {list(tensor.shape)} must have a contiguous last axis")
    if any(not table.is_contiguous() for table in tables):
        raise ValueError("the tables of a plan must be contiguous")


def _launch(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor],
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    config: TileConfig,
    scratch: Scratch | None,
    weight_strides: tuple[int, int],
    pool_strides: tuple[int, int, int, int],
    outputs: tuple[int, ...],
    inputs: tuple[int, ...],
) -> None:
    x, weight, bias, shrink, expand, scale, y = tensors
    _check_layout(tensors, tables, config)
    num_rows = x.shape[0]
    if num_rows == 0:
        return
    scratch = scratch or _scratch_for(config, num_rows, outputs, x.device)
    fused_lora_linear[(config.num_programs(num_rows, outputs),)](
        x, weight, y if bias is None else bias, shrink, expand, scale, *tables, y,
        scratch.planes, scratch.arrivals,
        num_rows, x.stride(0), *weight_strides, *pool_strides, scale.stride(0), y.stride(0),
        *constants(config, outputs, inputs, has_bias=bias is not None).values(),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def constants(
    config: TileConfig, outputs: tuple[int, ...], inputs: tuple[int, ...], *, has_bias: bool
) -> dict[str, int | bool]:
    """The kernel's compile-time arguments, in their order."""
    n0, n1, n2 = (*outputs, 0, 0)[:MAX_SLICES]
    k0, k1, k2 = (*inputs, 0, 0)[:MAX_SLICES]
    return {
        "N0": n0,
        "N1": n1,
        "N2": n2,
        "K0": k0,
        "K1": k1,
        "K2": k2,
        "HAS_BIAS": has_bias,
        "SWAP": config.swap,
        "SPLIT_K": config.split_k,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_C": config.block_c,
        "GROUP_M": config.group_m,
    }


def _scratch_for(
    config: TileConfig, rows: int, outputs: tuple[int, ...], device: torch.device
) -> Scratch:
    if config.split_k == 1:
        return Scratch.allocate(1, 1, device)
    tiles = config.num_tiles(rows, outputs)
    return Scratch.allocate(config.split_k * rows * sum(outputs), tiles, device)
