"""Launches of the fused linear. Tensors on a GPU, or on a CPU under Triton's interpreter.

`config.variant` says which kernels run; the arguments and the result are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from polygraft.kernels.fused.kernel import fused_lora_linear
from polygraft.kernels.fused.scratch import Scratch
from polygraft.kernels.fused.staged_kernel import staged_lora_linear
from polygraft.kernels.fused.tiles import Bucket, Stage, TileConfig

__all__ = ["Scratch", "lora_linear", "lora_linear_input_gradient"]

MAX_SLICES = 3


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
    """As `reference.lora_linear`, on a GPU. Raises ValueError for what the kernels cannot read.

    The plan's tiles must be of `config.block_m` rows. Without `scratch`, one is made if needed. The
    variant `base` takes the plan's word for it that there is no column: it does not look.
    """
    _check_shapes(x, weight, a, bt, slices)
    y = x.new_empty(x.shape[0], weight.shape[0]) if out is None else out
    tables = (row_columns, tile_columns, column_rows, column_weights)
    work = _Work(
        tensors=(x, weight, bias, a, bt, scale, y),
        tables=tables,
        weight_strides=(weight.stride(0), weight.stride(1)),
        pool_strides=(a.stride(0), a.stride(1), bt.stride(0), 0),
        bucket=Bucket(x.shape[0], (x.shape[1],), tuple(slices)),
    )
    _run(work, config, scratch)
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
    scratch: Scratch | None = None,
) -> Tensor:
    """As its twin in `reference`: the same kernels with W transposed and the pools exchanged."""
    dx = dy.new_empty(dy.shape[0], weight.shape[1])
    _check_shapes(dx, weight, a, bt, slices)
    work = _Work(
        tensors=(dy, weight, None, bt, a, scale, dx),
        tables=(row_columns, tile_columns, column_rows, column_weights),
        weight_strides=(weight.stride(1), weight.stride(0)),
        pool_strides=(bt.stride(0), 0, a.stride(0), a.stride(1)),
        bucket=Bucket(dy.shape[0], tuple(slices), (weight.shape[1],), is_gradient=True),
    )
    _run(work, config, scratch)
    return dx


@dataclass(frozen=True, slots=True)
class _Work:
    """The arguments of one linear as the kernels take them, forward or gradient.

    tensors: X, W, bias, shrink pool, expand pool, scale, Y. tables: those of the plan. bucket: the
    exact number of rows, and the widths.
    """

    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]
    tables: tuple[Tensor, Tensor, Tensor, Tensor]
    weight_strides: tuple[int, int]
    pool_strides: tuple[int, int, int, int]
    bucket: Bucket


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


def _check_layout(work: _Work, config: TileConfig) -> None:
    x, row_columns, tile_columns = work.tensors[0], work.tables[0], work.tables[1]
    planned = row_columns.shape[0] // max(tile_columns.shape[0], 1)
    if planned != config.block_m or row_columns.shape[0] < x.shape[0]:
        raise ValueError(
            f"the plan is of {tile_columns.shape[0]} tiles of {planned} rows, but the kernel "
            f"computes {x.shape[0]} rows in tiles of {config.block_m}"
        )
    for tensor in (x, *work.tensors[3:]):
        if tensor is not None and tensor.stride(-1) != 1:
            raise ValueError(f"a tensor of {list(tensor.shape)} must have a contiguous last axis")
    if any(not table.is_contiguous() for table in work.tables):
        raise ValueError("the tables of a plan must be contiguous")


def _run(work: _Work, config: TileConfig, scratch: Scratch | None) -> None:
    _check_layout(work, config)
    if work.bucket.rows == 0:
        return
    if scratch is None:
        # Why the capacity of the plan: how many columns a segment has is known on the device only.
        columns = work.tables[2].shape[0]
        scratch = Scratch.for_launches([(work.bucket, config)], columns, work.tensors[0].device)
    match config.variant:
        case "inline":
            _launch_inline(work, config, scratch)
        case "producers":
            ready = _counters(scratch, config.num_row_tiles(work.bucket.rows))
            _launch_stage(work, config, scratch.with_ready(ready), Stage.FUSED)
        case "pair":
            _launch_stage(work, config, scratch, Stage.SHRINK)
            _launch_stage(work, config, scratch, Stage.BASE_AND_EXPAND)
        case "hybrid":
            _run_hybrid(work, config, scratch)
        case "base":
            _multiply_base(work)


def _counters(scratch: Scratch, num_row_tiles: int) -> Tensor:
    """Those of the step's arena, or new ones."""
    if scratch.ready is None:
        return torch.zeros(num_row_tiles, dtype=torch.int32, device=scratch.planes.device)
    if scratch.ready.numel() < num_row_tiles:
        raise ValueError(
            f"{scratch.ready.numel()} counters for {num_row_tiles} row tiles; make the arena for "
            "the largest step"
        )
    return scratch.ready


def _multiply_base(work: _Work) -> None:
    """Y = X W^T + bias, by the vendor's library."""
    x, weight, bias, *_, y = work.tensors
    matrix = weight if work.bucket.is_gradient else weight.t()
    if bias is None:
        torch.mm(x, matrix, out=y)
    else:
        torch.addmm(bias, x, matrix, out=y)


def _run_hybrid(work: _Work, config: TileConfig, scratch: Scratch) -> None:
    """The low-rank sums on a side stream, under the product of the base; then Y += S E."""
    device = work.tensors[0].device
    if device.type == "cuda":
        current, side = torch.cuda.current_stream(device), _side_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            _launch_stage(work, config, scratch, Stage.SHRINK)
        _multiply_base(work)
        current.wait_stream(side)
    else:
        _launch_stage(work, config, scratch, Stage.SHRINK)
        _multiply_base(work)
    _launch_stage(work, config, scratch, Stage.EXPAND)


@lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _launch_inline(work: _Work, config: TileConfig, scratch: Scratch) -> None:
    x, weight, bias, shrink, expand, scale, y = work.tensors
    bucket = work.bucket
    fused_lora_linear[(config.num_programs(bucket.rows, bucket.outputs),)](
        x, weight, y if bias is None else bias, shrink, expand, scale, *work.tables, y,
        scratch.planes, scratch.arrivals,
        bucket.rows, config.split_k, split_inputs(config, bucket.inputs), x.stride(0),
        *work.weight_strides, *work.pool_strides, scale.stride(0), y.stride(0),
        *constants(config, bucket.outputs, bucket.inputs, has_bias=bias is not None).values(),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _launch_stage(work: _Work, config: TileConfig, scratch: Scratch, stage: Stage) -> None:
    x, weight, bias, shrink, expand, scale, y = work.tensors
    bucket, low, ready = work.bucket, scratch.low, scratch.ready
    slices = len(bucket.inputs) * len(bucket.outputs)
    wanted = config.shrink_split * bucket.rows * slices * scratch.low_columns
    if low is None or low.numel() < wanted or scratch.low_columns == 0:
        raise ValueError(
            f"the variant {config.variant} keeps its low-rank sums in the scratch: {wanted} floats "
            f"for {bucket.rows} rows; make it with Scratch.for_launches"
        )
    pdl = config.variant == "pair" and has_dependent_launch(x.device)
    programs = num_stage_programs(config, bucket, stage)
    fixed = stage_constants(
        config, bucket.outputs, bucket.inputs, has_bias=bias is not None, stage=stage, pdl=pdl
    )
    options = {"launch_pdl": True} if pdl and stage == Stage.BASE_AND_EXPAND else {}
    staged_lora_linear[(programs,)](
        x, weight, y if bias is None else bias, shrink, expand, scale, *work.tables, y,
        scratch.planes, scratch.arrivals, low, scratch.arrivals if ready is None else ready,
        bucket.rows, config.split_k, split_inputs(config, bucket.inputs), scratch.low_columns,
        x.stride(0), *work.weight_strides, *work.pool_strides,
        scale.stride(0), y.stride(0), *fixed.values(),
        num_warps=config.num_warps, num_stages=config.num_stages, **options,
    )  # fmt: skip


def has_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it still runs (PDL): Hopper and later."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def num_stage_programs(config: TileConfig, bucket: Bucket, stage: Stage) -> int:
    """Programs of one launch of the staged kernel."""
    producers = config.producers * config.num_row_tiles(bucket.rows)
    tiles = config.num_tiles(bucket.rows, bucket.outputs)
    return {
        Stage.FUSED: producers + config.split_k * tiles,
        Stage.SHRINK: producers,
        Stage.BASE_AND_EXPAND: config.split_k * tiles,
        Stage.EXPAND: tiles,
    }[stage]


def split_inputs(config: TileConfig, inputs: tuple[int, ...]) -> int:
    """Terms of the sum that one of `split_k` programs adds up: a multiple of `block_k`."""
    step = config.split_k * config.block_k
    return -(-sum(inputs) // step) * config.block_k


def _divides(size: int, widths: tuple[int, ...]) -> bool:
    return not any(width % size for width in widths)


def constants(
    config: TileConfig, outputs: tuple[int, ...], inputs: tuple[int, ...], *, has_bias: bool
) -> dict[str, int | bool]:
    """The compile-time arguments of kernel I, in their order."""
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
        "IS_SPLIT": config.split_k > 1,
        "EVEN_K": _divides(config.split_k * config.block_k, inputs),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_C": config.block_c,
        "GROUP_M": config.group_m,
    }


def stage_constants(
    config: TileConfig,
    outputs: tuple[int, ...],
    inputs: tuple[int, ...],
    *,
    has_bias: bool,
    stage: Stage,
    pdl: bool,
) -> dict[str, int | bool]:
    """Those of the staged kernel. What a stage does not use is fixed, so as not to compile anew."""
    fixed = constants(config, outputs, inputs, has_bias=has_bias)
    if stage in (Stage.SHRINK, Stage.EXPAND):
        fixed.update(HAS_BIAS=False, IS_SPLIT=False)
    return fixed | {
        "SHRINK_SPLIT": config.shrink_split,
        "SHRINK_BLOCK_K": config.shrink_block_k or config.block_k,
        "PRODUCERS": config.producers,
        "STAGE": int(stage),
        "PDL": pdl,
    }
