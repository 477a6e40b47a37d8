"""The paired bootstrap against float64 formulas and an exact enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from polygraft.adapters.bootstrap import mean_interval


def test_it_agrees_with_every_resample_of_few_rows() -> None:
    values = [-3.0, 0.5, 4.0, 1.0, 2.5]
    means = [sum(drawn) / 5 for drawn in itertools.product(values, repeat=5)]  # all 3125
    lower, upper = np.percentile(means, [2.5, 97.5])
    found = mean_interval(values, resamples=200_000)
    assert found == pytest.approx((lower, upper), abs=0.06)  # the distance of two means is 0.1


@pytest.mark.parametrize("rows", [100, 1000])
def test_many_rows_give_the_interval_of_the_normal_distribution(rows: int) -> None:
    values = np.random.default_rng(7).normal(1.0, 8.0, rows)
    half = 1.959964 * values.std() / math.sqrt(rows)  # the bootstrap's own deviation has no n - 1
    lower, upper = mean_interval(list(values))
    # 10000 resamples place a 2.5 % bound within about 2 % of the half width, three times over.
    assert lower == pytest.approx(values.mean() - half, abs=0.07 * half)
    assert upper == pytest.approx(values.mean() + half, abs=0.07 * half)


def test_rows_of_one_group_count_once() -> None:
    values = np.random.default_rng(8).normal(0.0, 1.0, 50)
    repeated = [value for value in values for _ in range(20)]
    groups = [group for group in range(50) for _ in range(20)]
    grouped = mean_interval(repeated, groups)
    assert grouped == pytest.approx(mean_interval(list(values)), abs=1e-12)
    alone = mean_interval(repeated)
    ratio = (grouped[1] - grouped[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(math.sqrt(20), rel=0.1)


def test_the_same_rows_get_the_same_bounds() -> None:
    values = [float(n % 7) for n in range(300)]
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval([2.0] * 10) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no rows"):
        mean_interval([])
