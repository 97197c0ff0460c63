"""The size of the network on a curve that is as good as another one."""

import numpy as np
import pytest

from fpe_reproduction.statistics import equal_size, jackknife, mean, size_at

SIZES = [100, 150, 200, 300]


@pytest.mark.parametrize("slope", [-0.06, 8.0])
@pytest.mark.parametrize("size", [50, 100, 170, 300, 900])
def test_a_curve_that_is_linear_in_the_logarithm_is_read_exactly(slope, size):
    curve = [1 + slope * np.log(own) for own in SIZES]
    assert size_at(SIZES, curve, 1 + slope * np.log(size)) == pytest.approx(size)


def test_between_two_points_the_curve_is_linear_in_the_logarithm():
    assert size_at([1, 4, 16], [0, 0.5, 0.6], 0.25) == pytest.approx(2)
    assert size_at([1, 4, 16], [0, 0.5, 0.6], 0.55) == pytest.approx(8)
    assert size_at([1, 4, 16], [0.9, 0.4, 0.3], 0.65) == pytest.approx(2)


def test_a_larger_network_that_is_worse_makes_the_curve_flat():
    assert size_at([1, 2, 4, 8], [0, 0.5, 0.4, 1.0], 0.75) == pytest.approx(np.sqrt(32))


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=7)
    own, known = jackknife(lambda trials: float(values[trials].mean()), 7), mean(values)
    assert (own.value, own.low, own.high) == pytest.approx((known.value, known.low, known.high))


def test_the_interval_holds_the_true_size():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        noise = generator.normal(0, 0.004, (5, 5))
        curve = 1.5 - 0.06 * np.log(SIZES) + noise[:, :4]
        found = equal_size(SIZES, curve, 1.5 - 0.06 * np.log(220) + noise[:, 4])
        hits += found.low < 220 < found.high
    assert hits / 200 == pytest.approx(0.95, abs=0.04)


def test_a_noise_that_networks_share_does_not_count():
    shared = np.array([0, 0.3, -0.2, 0.1, 0.5])
    curve = 1.5 - 0.06 * np.log(SIZES) + shared[:, None]
    found = equal_size(SIZES, curve, 1.5 - 0.06 * np.log(220) + shared)
    assert (found.low, found.value, found.high) == pytest.approx((220, 220, 220))
