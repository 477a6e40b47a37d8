"""Kernel P in all its stages, interpreted, against float64: mixed batches, isolation, replay.

One launch (producers), two (pair), beside the vendor's product (hybrid); and that alone (base).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from kernel_support.fused_cases import FusedCase, random_case
from kernel_support.fused_launches import (
    BOUNDS,
    far_apart,
    forward,
    input_gradient,
    two_adapters,
)
from tolerances import relative_error

from polygraft.kernels.fused.plan import ColumnPlan, PlanCapacity
from polygraft.kernels.fused.scratch import CounterArena, Scratch
from polygraft.kernels.fused.tiles import Bucket, TileConfig, Variant
from polygraft.kernels.lazy_memory import lazy_zeros
from polygraft.kernels.segments import LoraSegment

CPU = torch.device("cpu")
VARIANTS: tuple[Variant, ...] = ("producers", "pair", "hybrid")
CONFIGS = [
    TileConfig(16, 32, 64, producers=3),
    TileConfig(16, 64, 64, block_c=32, swap=True, shrink_split=2),
    TileConfig(16, 64, 64, block_c=64, swap=True, split_k=2, shrink_split=4, shrink_block_k=16),
    TileConfig(32, 64, 32, split_k=3, shrink_split=2),
    TileConfig(64, 64, 64, block_c=32, swap=True, producers=4),
    TileConfig(64, 128, 128, block_c=64, group_m=1, producers=1),
]
FORMS = [
    # Why not split: the hybrid's product is not ours to split.
    replace(config, variant=variant, split_k=1 if variant == "hybrid" else config.split_k)
    for config, variant in itertools.product(CONFIGS, VARIANTS)
]


def bucket_of(case: FusedCase) -> Bucket:
    return Bucket(len(case.x), (case.weight.shape[1],), case.slices)


def scratch_for(case: FusedCase, config: TileConfig, columns: int = 160) -> Scratch:
    """What a launch needs, its memory full of NaN."""
    scratch = Scratch.for_launches([(bucket_of(case), config)], columns, CPU)
    assert scratch.low is not None
    scratch.low.fill_(torch.nan)
    scratch.planes.fill_(torch.nan)
    return scratch


@pytest.mark.parametrize("seed", range(400, 472))
def test_float32_equals_float64(seed: int) -> None:
    case, config = random_case(seed), FORMS[seed % len(FORMS)]
    y = forward(case, case.plan(config.block_m), config)
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(500, 518))
def test_half_precision_equals_float64(seed: int, dtype: torch.dtype) -> None:
    case, config = random_case(seed, dtype), FORMS[seed % len(FORMS)]
    y = forward(case, case.plan(config.block_m), config)
    assert y.dtype == dtype
    assert relative_error(y, case.expected()) <= BOUNDS[dtype]


@pytest.mark.parametrize("seed", range(600, 618))
def test_the_gradient_of_the_input_equals_float64(seed: int) -> None:
    case = random_case(seed, max_rows=40)
    config = replace(FORMS[seed % len(FORMS)], split_k=1, shrink_split=1)
    dy = torch.randn(len(case.x), len(case.weight), generator=torch.Generator().manual_seed(seed))
    dx = input_gradient(case, case.plan(config.block_m), config, dy)
    assert relative_error(dx, case.input_gradient(dy)) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_up_to_256_mix_with_small_ones(variant: Variant) -> None:
    case = random_case(2, max_rows=20, ranks=(256, 1, 20))
    case.segments = [replace(s, parts=s.parts[:1]) for s in case.segments]
    config = TileConfig(16, 64, 128, block_c=64, variant=variant, shrink_split=2)
    y = forward(case, case.plan(16), config)
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("config", FORMS[:12])
def test_a_launch_repeated_with_its_scratch_gives_the_same_bits(config: TileConfig) -> None:
    case = random_case(11)
    plan, scratch = case.plan(config.block_m), scratch_for(case, config)
    arena = CounterArena(1, config.num_row_tiles(len(case.x)), CPU)
    scratch = scratch.with_ready(arena.take())
    first = forward(case, plan, config, scratch)
    assert relative_error(first, case.expected()) <= BOUNDS[torch.float32]
    arena.zero_()
    assert torch.equal(forward(case, plan, config, scratch), first)
    assert not scratch.arrivals.any()


@pytest.mark.parametrize("config", CONFIGS)
def test_one_launch_and_two_give_the_same_bits(config: TileConfig) -> None:
    case = random_case(11)
    one, two = (
        forward(case, case.plan(config.block_m), replace(config, variant=variant))
        for variant in ("producers", "pair")
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("config", CONFIGS)
def test_without_columns_it_is_the_plain_product(config: TileConfig) -> None:
    case = two_adapters(17)
    producers = replace(config, variant="producers")
    mixed = forward(case, case.plan(config.block_m), producers)
    case.segments = []
    plan = case.plan(config.block_m)
    plain = forward(case, plan, producers)
    assert torch.equal(plain, forward(case, plan, replace(config, variant="inline")))
    # The last row is base only: the columns of its neighbours leave no trace in it.
    assert torch.equal(mixed[-1], plain[-1])
    assert not torch.equal(mixed[0], plain[0])


@pytest.mark.parametrize("seed", [1, 9])
def test_what_the_vendor_computes_is_left_as_it_is_where_there_are_no_columns(seed: int) -> None:
    case = random_case(seed)
    case.segments = []
    product = torch.nn.functional.linear(case.x, case.weight, case.bias)
    for variant in ("base", "hybrid"):
        y = forward(case, case.plan(16), TileConfig(16, 32, 64, variant=variant))
        assert torch.equal(y, product)


def test_a_tile_waits_for_its_producers_and_one_without_columns_does_not() -> None:
    config = replace(CONFIGS[0], variant="producers")
    case = two_adapters(17)  # two tiles; the second is the base-only row
    plan = case.plan(16)
    scratch = scratch_for(case, config)
    ready = torch.tensor([0, -100], dtype=torch.int32)
    y = forward(case, plan, config, scratch.with_ready(ready))
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float32]
    assert ready.tolist() == [config.producers, -100]
    with pytest.raises(Exception, match="wait forever"):
        forward(case, plan, config, scratch.with_ready(ready - 100))


def test_the_arena_gives_each_launch_its_own_counters() -> None:
    arena = CounterArena(2, 3, CPU)
    one, other = arena.take(), arena.take()
    one.fill_(7)
    assert not other.any()
    assert one.data_ptr() % 16 == other.data_ptr() % 16 == 0
    with pytest.raises(ValueError, match="to have 2 launches with counters, not more"):
        arena.take()
    arena.zero_()
    assert not one.any()


# The interpreter computes with numpy, which warns of what is done on purpose here.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("pool", ["a", "bt", "scale"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_not_finite_in_an_adapter_reaches_its_own_rows_only(
    pool: str, value: float, variant: Variant
) -> None:
    case = two_adapters(9, torch.float16)
    swap = pool == "bt"
    config = TileConfig(16, 64, 64, swap=swap, variant=variant, shrink_split=2)
    plan = case.plan(config.block_m)
    healthy = forward(case, plan, config)
    getattr(case, pool)[1] = value  # a row of the first adapter, which has the even rows
    y = forward(case, plan, config)
    others = [*range(1, 8, 2), 8]
    assert torch.equal(y[others], healthy[others])
    assert not y[0:8:2].isfinite().all(dim=1).any()


@pytest.mark.parametrize("name", ["x", "weight", "a", "bt"])
def test_rows_may_lie_beyond_32_bits(name: str) -> None:
    case, config = two_adapters(9, torch.float16), replace(CONFIGS[1], variant="producers")
    setattr(case, name, far_apart(getattr(case, name)))
    y = forward(case, case.plan(config.block_m), config)
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float16]


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_the_sums_of_a_row_may_lie_beyond_32_bits(config: TileConfig) -> None:
    case, config = two_adapters(9), replace(config, variant="producers")
    columns = 2**31 // (8 * len(case.slices)) // 16 * 16 + 16
    scratch = scratch_for(case, config)
    places = config.shrink_split * 9 * len(case.slices) * columns
    low = lazy_zeros((places,), dtype=torch.float32, device=CPU)
    y = forward(case, case.plan(16), config, replace(scratch, low=low, low_columns=columns))
    assert relative_error(y, case.expected()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1]])
def test_a_row_with_more_columns_than_there_is_room_for_is_nan_and_harms_no_other(
    config: TileConfig,
) -> None:
    case, config = two_adapters(9), replace(config, variant="producers")
    case.segments[0] = LoraSegment(((0, 4, 1.0), (4, 4, 1.0)), 0, 1)  # 32 columns
    y = forward(case, case.plan(16), config, scratch_for(case, config, columns=16))
    assert y[0].isnan().all()
    assert relative_error(y[1:], case.expected()[1:]) <= BOUNDS[torch.float32]


def test_the_plan_refuses_such_a_row() -> None:
    plan = ColumnPlan(PlanCapacity(9, 128, 16, segment_columns=32))
    plan.fill([LoraSegment(((0, 17, 1.0),), 0, 1)])
    with pytest.raises(ValueError, match=r"48 rank columns .* in one segment, .* room for 32"):
        plan.fill([LoraSegment(((0, 17, 1.0), (20, 1, 1.0)), 0, 1)])


def test_a_scratch_without_room_for_the_sums_is_refused() -> None:
    case, config = two_adapters(9), replace(CONFIGS[0], variant="pair")
    with pytest.raises(ValueError, match=r"keeps its low-rank sums .* Scratch.for_launches"):
        forward(case, case.plan(16), config, Scratch.allocate(1, 1, CPU))
