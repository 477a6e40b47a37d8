"""Kernel I, interpreted, against float64: mixed batches, isolation, replay."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from kernel_support.fused_cases import random_case
from kernel_support.fused_launches import (
    BOUNDS,
    far_apart,
    forward,
    input_gradient,
    two_adapters,
)
from tolerances import relative_error

from polygraft.kernels.fused import tile_functions
from polygraft.kernels.fused.launch import Scratch
from polygraft.kernels.fused.tiles import TileConfig

CONFIGS = [
    TileConfig(16, 32, 64),
    TileConfig(16, 64, 64, block_c=64, swap=True),
    TileConfig(16, 64, 64, block_c=32, swap=True, split_k=2),
    TileConfig(32, 64, 32, block_c=64, split_k=3),
    TileConfig(64, 64, 64, block_c=128, swap=True),
    TileConfig(64, 128, 128, block_c=64, group_m=1),
]


def test_the_interpreter_runs_here() -> None:
    assert tile_functions.INTERPRETED.value


@pytest.mark.parametrize("seed", range(108))
def test_float32_equals_float64(seed: int) -> None:
    case, config = random_case(seed), CONFIGS[seed % len(CONFIGS)]
    y = forward(case, case.plan(config.block_m), config)
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(200, 230))
def test_half_precision_equals_float64(seed: int, dtype: torch.dtype) -> None:
    case, config = random_case(seed, dtype), CONFIGS[seed % len(CONFIGS)]
    y = forward(case, case.plan(config.block_m), config)
    assert y.dtype == dtype
    assert relative_error(y, case.expected()) <= BOUNDS[dtype]


@pytest.mark.parametrize("seed", range(300, 324))
def test_the_gradient_of_the_input_equals_float64(seed: int) -> None:
    case, config = random_case(seed, max_rows=40), replace(CONFIGS[seed % 6], split_k=1)
    dy = torch.randn(len(case.x), len(case.weight), generator=torch.Generator().manual_seed(seed))
    dx = input_gradient(case, case.plan(config.block_m), config, dy)
    assert relative_error(dx, case.input_gradient(dy)) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ranks_up_to_256_mix_with_small_ones(seed: int) -> None:
    case = random_case(seed, max_rows=20, ranks=(256, 1, 20))
    case.segments = [replace(s, parts=s.parts[:1]) for s in case.segments]
    config = TileConfig(16, 64, 128, block_c=64)
    y = forward(case, case.plan(16), config)
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_launch_repeated_with_its_scratch_gives_the_same_bits(config: TileConfig) -> None:
    case = random_case(11)
    plan = case.plan(config.block_m)
    size = config.split_k * len(case.x) * len(case.weight)
    tiles = config.num_tiles(len(case.x), case.slices)
    scratch = Scratch.allocate(size, tiles, torch.device("cpu"))
    scratch.planes.fill_(torch.nan)
    first = forward(case, plan, config, scratch)
    assert relative_error(first, case.expected()) <= BOUNDS[torch.float32]
    assert torch.equal(forward(case, plan, config, scratch), first)
    assert not scratch.arrivals.any()


@pytest.mark.parametrize("config", CONFIGS[:3])
def test_without_columns_it_is_the_plain_product(config: TileConfig) -> None:
    case = two_adapters(17)
    mixed = forward(case, case.plan(config.block_m), config)
    case.segments = []
    plain = forward(case, case.plan(config.block_m), config)
    assert relative_error(plain, case.expected()) <= BOUNDS[torch.float32]
    # The last row is base only: the columns of its neighbours leave no trace in it.
    assert torch.equal(mixed[-1], plain[-1])
    assert not torch.equal(mixed[0], plain[0])


# The interpreter computes with numpy, which warns of what is done on purpose here.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("pool", ["a", "bt", "scale"])
def test_what_is_not_finite_in_an_adapter_reaches_its_own_rows_only(
    pool: str, value: float, dtype: torch.dtype
) -> None:
    case = two_adapters(9, dtype)
    config = random.Random(f"{pool}{value}{dtype}").choice(CONFIGS)
    plan = case.plan(config.block_m)
    healthy = forward(case, plan, config)
    getattr(case, pool)[1] = value  # a row of the first adapter, which has the even rows
    y = forward(case, plan, config)
    others = [*range(1, 8, 2), 8]
    assert torch.equal(y[others], healthy[others])
    assert not y[0:8:2].isfinite().all(dim=1).any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_row_that_is_not_finite_reaches_no_other_row() -> None:
    case, config = two_adapters(9), CONFIGS[0]
    plan = case.plan(config.block_m)
    healthy = forward(case, plan, config)
    case.x[2] = torch.nan
    y = forward(case, plan, config)
    others = [row for row in range(9) if row != 2]
    assert torch.equal(y[others], healthy[others])


@pytest.mark.parametrize("name", ["x", "weight", "a", "bt"])
def test_rows_may_lie_beyond_32_bits(name: str) -> None:
    case, config = two_adapters(9, torch.float16), CONFIGS[1]
    setattr(case, name, far_apart(getattr(case, name)))
    y = forward(case, case.plan(config.block_m), config)
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float16]


def test_rows_beyond_the_step_are_not_written() -> None:
    case, config = two_adapters(9), CONFIGS[0]
    out = torch.full((20, len(case.weight)), 7.0)
    plan = case.plan(config.block_m, max_rows=20)
    forward(case, plan, config, out=out[:9])
    assert relative_error(out[:9], case.expected()) <= BOUNDS[torch.float32]
    assert (out[9:] == 7.0).all()


def test_what_does_not_belong_together_is_refused() -> None:
    case, config = two_adapters(9), CONFIGS[0]
    plan = case.plan(config.block_m)
    with pytest.raises(ValueError, match=r"tiles of 16 rows, but .* 9 rows in tiles of 32"):
        forward(case, plan, CONFIGS[3])
    with pytest.raises(ValueError, match="do not belong together"):
        forward(replace(case, slices=(5,)), plan, config)
    with pytest.raises(ValueError, match="contiguous last axis"):
        forward(replace(case, x=case.x.t().contiguous().t()), plan, config)
