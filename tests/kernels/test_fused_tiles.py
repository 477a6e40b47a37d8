"""The choice of tiles is a function of the bucket, and a bucket of the row count and the layer."""

from __future__ import annotations

import pytest

from polygraft.kernels.fused.tiles import LARGEST_BUCKET, Bucket, Target, choice

TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "gfx942")
SITES = [(4096, (4096, 1024, 1024)), (4096, (14336, 14336)), (896, (896, 128, 128)), (576, (192,))]


def test_buckets_are_powers_of_two() -> None:
    buckets = [Bucket.forward(rows, 64, (64,)).rows for rows in (0, 1, 2, 3, 4, 17, 256, 257)]
    assert buckets == [1, 1, 2, 4, 4, 32, 256, 512]
    assert Bucket.forward(10**6, 64, (64,)).rows == LARGEST_BUCKET


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("inputs", "slices"), SITES)
def test_tiles_leave_no_remainder_of_the_sum(
    target: Target, inputs: int, slices: tuple[int, ...]
) -> None:
    for rows in (1, 16, 17, 64, 65, 300, 2048, 8192):
        config = choice(Bucket.forward(rows, inputs, slices), target)
        assert inputs % (config.block_k * config.split_k) == 0
        gradient = choice(Bucket.gradient(rows, inputs, slices), target)
        assert gradient.split_k == 1
        assert not any(width % gradient.block_k for width in slices)


def test_small_layers_are_split_among_programs_and_large_ones_are_not() -> None:
    small = choice(Bucket.forward(1, 4096, (4096,)), "sm_90")
    large = choice(Bucket.forward(1, 4096, (14336, 14336)), "sm_90")
    assert (small.split_k, large.split_k) == (2, 1)
    assert small.num_programs(1, (4096,)) == 128


def test_tiles_do_not_cross_slices() -> None:
    config = choice(Bucket.forward(1, 64, (48, 16, 16)), "sm_90")
    assert config.num_tiles(1, (48, 16, 16)) == 3
