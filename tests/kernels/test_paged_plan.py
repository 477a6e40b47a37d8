"""The plan of paged attention, through its torch twin, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernel_support.paged_cases import random_paged_case

from polygraft.kernels.paged import reference
from polygraft.kernels.paged.plan import PagedPlan
from polygraft.kernels.paged.tiles import decode_config, prefill_config


@pytest.mark.parametrize("tile_rows", [1, 3, 64])
@pytest.mark.parametrize("seed", range(18))
def test_the_twin_equals_float64(seed: int, tile_rows: int) -> None:
    case = random_paged_case(seed)
    plan = case.plan(tile_rows)
    found = reference.attention(
        case.q, case.keys, case.values, plan, num_tiles=plan.num_tiles, **case.rule
    )
    assert (found - case.expected()).abs().max() <= 3e-6


def test_a_step_overwrites_the_one_before_and_is_copied_as_far_as_it_is_used() -> None:
    large, small = random_paged_case(99), random_paged_case(99)
    small.sequences = [replace(small.sequences[0], count=1)]
    capacity = replace(large.plan(2).capacity, tiles=400, blocks=400)
    host, device = PagedPlan(capacity), PagedPlan(capacity)
    for case in (large, small, large):
        host.fill(case.sequences, padding=case.padding)
        device.copy_(host)
        found = reference.attention(
            case.q, case.keys, case.values, device, num_tiles=capacity.tiles, **case.rule
        )
        expected = case.expected()
        for rows in case.sequences:
            own = slice(rows.start, rows.start + rows.count)
            assert (found[own] - expected[own]).abs().max() <= 3e-6


def test_an_empty_step_has_no_tiles() -> None:
    plan = random_paged_case(99).plan(4)
    plan.fill([])
    assert plan.num_tiles == 0
    assert not plan.tiles[:, 2].any()


def test_more_than_fits_is_refused() -> None:
    case = random_paged_case(99)
    plan = case.plan(4)
    with pytest.raises(ValueError, match=r"tiles and \d+ blocks in one step, but the plan holds"):
        plan.fill(case.sequences, padding=range(len(case.q), len(case.q) + 4))
    with pytest.raises(ValueError, match="does not fit one of"):
        plan.copy_(PagedPlan(replace(plan.capacity, tiles=3)))


@pytest.mark.parametrize("context", [1, 512, 513, 8192, 131072, 1 << 20])
@pytest.mark.parametrize("group", [1, 4, 7, 16, 71])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_parts_cover_the_context(context: int, group: int, dim: int) -> None:
    config = decode_config(group, dim, context)
    assert config.splits * config.split >= context
    assert config.splits <= 32
    assert config.split % config.block_n == 0
    for each in (config, prefill_config(group, dim)):
        assert each.block_m >= group * each.rows(group)
        assert each.rows(group) >= 1
