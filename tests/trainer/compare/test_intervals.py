"""Intervals over seeds and rows, beside what statistics says they are."""

import numpy as np
import pytest

from polygraft.adapters.bootstrap import mean_interval
from polygraft.trainer.compare.intervals import estimate, estimate_difference
from polygraft.trainer.compare.verdicts import corrected


def test_one_seed_is_the_plain_bootstrap_over_rows_and_groups() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(50, 20, 120).tolist()
    groups = [number // 4 for number in range(120)]
    for drawn in ([], groups):
        found = estimate([rows], drawn)
        low, high = mean_interval(rows, drawn)
        assert found.value == pytest.approx(np.mean(rows))
        assert found.low == pytest.approx(low, abs=0.5)
        assert found.high == pytest.approx(high, abs=0.5)


def test_seeds_that_differ_widen_the_interval_as_their_variance_says() -> None:
    random = np.random.default_rng(2)
    seeds, rows = 30, 400
    offsets = random.normal(0, 8, seeds)
    values = 50 + offsets[:, None] + random.normal(0, 10, (1, rows)) + np.zeros((seeds, rows))
    found = estimate(values.tolist())
    error = 1.96 * (values.mean(1).var() / seeds + values.mean(0).var() / rows) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(error, rel=0.1)


def test_a_paired_difference_forgets_what_both_have_in_common() -> None:
    random = np.random.default_rng(3)
    common = random.normal(50, 30, (1, 200))
    one = (common + 1 + random.normal(0, 1, (3, 200))).tolist()
    other = (common + random.normal(0, 1, (3, 200))).tolist()
    found = estimate_difference(one, other)
    assert found.excludes_zero
    assert found.value == pytest.approx(1, abs=0.2)
    assert not estimate_difference(one, one).excludes_zero
    against_one_seed = estimate_difference(one, other[:1])
    assert against_one_seed.value == pytest.approx(np.mean(one) - np.mean(other[0]))


def test_different_rows_have_no_difference() -> None:
    with pytest.raises(ValueError, match="rows differ"):
        estimate_difference([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="rows"):
        estimate([])


def test_more_pairs_ask_for_more_confidence() -> None:
    assert corrected(2) == pytest.approx(0.95)
    assert corrected(4) == pytest.approx(1 - 0.05 / 6)
