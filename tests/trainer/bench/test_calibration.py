"""ECE by hand and against scikit-learn's calibration curve."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from polygraft.trainer.bench.calibration import BINS, calibrate, confidence


def test_by_hand() -> None:
    # 0.55 and 0.6 lie in one bin (0.5, 0.6]: mean 0.575, half of them right; 0.95 is right.
    found = calibrate([0.55, 0.6, 0.95], [True, False, True])
    assert found.error == pytest.approx((2 * abs(0.5 - 0.575) + abs(1 - 0.95)) / 3)
    assert [one.count for one in found.bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]


def test_against_scikit_learn() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.01, 0.999, 2000)
    right = random.random(2000) < sure**2
    truth, mean = calibration_curve(right, sure, n_bins=BINS)
    counts = np.histogram(sure, bins=np.linspace(0, 1, BINS + 1))[0]
    wanted = (counts * np.abs(truth - mean)).sum() / counts.sum()
    assert calibrate(sure.tolist(), right.tolist()).error == pytest.approx(wanted, abs=1e-12)


def test_the_bounds_fall_into_the_outer_bins() -> None:
    found = calibrate([0.0, 0.1, 1.0], [False, False, True])
    assert [one.count for one in found.bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.error == pytest.approx(2 / 3 * 0.05)


def test_confidence_is_the_share_of_the_likeliest_option() -> None:
    assert confidence([np.log(0.2), np.log(0.6)]) == pytest.approx(0.75)
    assert confidence([-5000.0, -5000.0]) == pytest.approx(0.5)


def test_nothing_to_calibrate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no answers"):
        calibrate([], [])
