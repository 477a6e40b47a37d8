"""The grouped multi-adapter update against a float64 loop over segments."""

from __future__ import annotations

import pytest
import torch
from tolerances import relative_error

from polygraft.kernels.grouped import GroupedSegments, Part, RankStack, Segment, rank_class
from polygraft.kernels.rank_pool import SitePool, SiteShape
from polygraft.kernels.reference import lora_linear_reference

SITES = [SiteShape(40, (24, 12, 12)), SiteShape(24, (40,)), SiteShape(40, (33,))]
SKIPPED_SITE = 2  # no adapter targets it
CLASS = 16


def make_pools(dtype: torch.dtype, num_adapters: int, ranks: list[int]) -> list[SitePool]:
    """Pools with adapters of the given ranks at rows 0, 16, 32 ..., scaled like trained ones."""
    generator = torch.Generator().manual_seed(0)
    pools = [
        SitePool(s, CLASS * num_adapters, dtype=dtype, device=torch.device("cpu")) for s in SITES
    ]
    for adapter in range(num_adapters):
        rank = ranks[adapter % len(ranks)]
        for pool in pools[:SKIPPED_SITE]:
            for z, out in enumerate(pool.shape.slices):
                if adapter % 2 and z == 1:
                    continue  # every other adapter leaves one slice alone
                a = torch.randn(rank, pool.shape.in_features, generator=generator)
                b = torch.randn(out, rank, generator=generator)
                pool.write(CLASS * adapter, z, a / a.shape[1] ** 0.5, b, 0.3 + 0.1 * adapter + z)
    return pools


def expected_update(
    pool: SitePool, x: torch.Tensor, owners: list[tuple[int, int, int]]
) -> torch.Tensor:
    """owners: (adapter, start, end). Float64, slice by slice."""
    outputs = []
    for z, out in enumerate(pool.shape.slices):
        lo, hi = pool.shape.bounds(z)
        adapters = []
        for adapter, start, end in owners:
            rows = slice(CLASS * adapter, CLASS * (adapter + 1))
            b = (pool.bt[rows, lo:hi].double() * pool.scale[rows, z, None].double()).t()
            adapters.append((start, end, pool.a[rows, z], b, 1.0))
        zero = torch.zeros(out, pool.shape.in_features)
        outputs.append(lora_linear_reference(x, zero, None, adapters))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lengths",
    [[1], [1, 1, 1, 1], [3, 1, 7], [1, 40, 2], [33, 64], [5, 5, 5], [1] * 9],
    ids=str,
)
def test_mixed_segments_equal_a_loop_over_them(dtype: torch.dtype, lengths: list[int]) -> None:
    pools = make_pools(dtype, len(lengths), ranks=[4, 16, 9])
    stack = RankStack(pools, CLASS)
    slots = stack.place({f"a{i}": [Part(CLASS * i, CLASS)] for i in range(len(lengths))})
    base_only = 2  # rows in front that belong to nobody
    owners, segments, start = [], [], base_only
    for adapter, length in enumerate(lengths):
        owners.append((adapter, start, start + length))
        segments.append(Segment(slots[f"a{adapter}"], start, start + length))
        start += length
    grouped = GroupedSegments(stack, segments, torch.device("cpu"))
    for site, pool in enumerate(pools):
        x = torch.randn(start, pool.shape.in_features, dtype=dtype)
        y = torch.zeros(start, pool.shape.out_features, dtype=dtype)
        grouped.add_(site, x, y)
        assert not y[:base_only].any(), "a base-only row changed"
        if site == SKIPPED_SITE:
            assert not y.any()
            continue
        error = relative_error(y, expected_update(pool, x, owners))
        assert error <= (2e-6 if dtype is torch.float32 else 2e-2)


def test_stack_changes_incrementally_and_never_serves_stale_columns() -> None:
    pools = make_pools(torch.float32, 6, ranks=[8])
    stack = RankStack(pools, CLASS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        count = int(torch.randint(1, 7, (1,), generator=generator))
        chosen = torch.randperm(6, generator=generator)[:count].tolist()
        slots = stack.place({f"a{i}": [Part(CLASS * i, CLASS)] for i in chosen})
        assert len(set(slots.values())) == count
        owners = [(adapter, row, row + 1) for row, adapter in enumerate(chosen)]
        segments = [Segment(slots[f"a{adapter}"], row, row + 1) for adapter, row, _ in owners]
        grouped = GroupedSegments(stack, segments, torch.device("cpu"))
        x = torch.randn(count, 40)
        y = torch.zeros(count, 48)
        grouped.add_(0, x, y)
        assert relative_error(y, expected_update(pools[0], x, owners)) <= 2e-6


def test_slots_stay_dense_when_adapters_leave() -> None:
    stack = RankStack(make_pools(torch.float32, 6, ranks=[8]), CLASS)
    stack.place({f"a{i}": [Part(CLASS * i, CLASS)] for i in range(6)})
    slots = stack.place({"a5": [Part(CLASS * 5, CLASS)]})
    assert slots == {"a5": 0}, "one adapter must not pay for five holes"


def test_a_composition_is_the_weighted_sum_of_its_parts() -> None:
    pools = make_pools(torch.float32, 3, ranks=[4, 16, 9])
    weights = (0.5, -1.5, 2.0)
    parts = [Part(CLASS * i, CLASS, weight) for i, weight in enumerate(weights)]
    assert rank_class(parts) == 4 * CLASS
    stack = RankStack(pools, 4 * CLASS)
    stack.place({"four": [*parts, Part(0, CLASS, 9.0)]})  # fills the columns left over below
    slot = stack.place({"three": parts})["three"]
    for site, pool in enumerate(pools[:SKIPPED_SITE]):
        for rows in (3, 40):  # padded together, and alone
            grouped = GroupedSegments(stack, [Segment(slot, 0, rows)], torch.device("cpu"))
            x = torch.randn(rows, pool.shape.in_features)
            y = torch.zeros(rows, pool.shape.out_features)
            grouped.add_(site, x, y)
            alone = [expected_update(pool, x, [(i, 0, rows)]) for i in range(3)]
            expected = sum(weight * update for weight, update in zip(weights, alone, strict=True))
            assert isinstance(expected, torch.Tensor)
            assert relative_error(y, expected) <= 2e-6
