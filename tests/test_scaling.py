"""How estimators scale features: each column by what it holds, whatever stands beside it."""

import numpy as np
import pytest
import torch

from fpe import FPEClassifier
from fpe.sklearn.inputs import has_unlike_spreads, mean_and_spread, scaler_of


def columns(rows=400, **spreads):
    """Return columns of given spreads around ten times as much."""
    noise = np.random.default_rng(0).normal(size=(rows, len(spreads)))
    return (10 + noise) * np.array([*spreads.values()])


@pytest.mark.parametrize("large", [1e3, 1e9, 1.5e12])
def test_a_large_column_hides_no_small_one(large):
    X = columns(small=1.0, other=0.3, large=large)
    mean, scale = scaler_of(X, None)
    assert has_unlike_spreads(X)
    np.testing.assert_allclose(scale, X.std(axis=0))
    np.testing.assert_allclose(mean, X.mean(axis=0))


@pytest.mark.parametrize("spreads", [(1, 1000), (1, 1, 1000, 1000), (1, 1000, 1000), (15, 2e4, 1e5)])
def test_few_features_are_alike_only_if_all_are(spreads):
    X = columns(**{str(i): own for i, own in enumerate(spreads)})
    np.testing.assert_allclose(scaler_of(X, None)[1], X.std(axis=0))


def test_of_many_features_some_may_hardly_vary():
    X = columns(**{str(i): 1e-4 if i < 5 else 1.0 for i in range(64)})
    assert not has_unlike_spreads(X)
    assert len(set(scaler_of(X, None)[1].tolist())) == 1


@pytest.mark.parametrize("value", [0.1, 1e-30, 1e9 / 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_column_is_divided_by_1(value, dtype):
    X = columns(constant=1.0, varying=1.0, more=100.0).astype(dtype)
    X[:, 0] = value
    X[::2, 0] = np.nextafter(dtype(value), dtype(np.inf))  # constant, but for rounding
    assert scaler_of(X, None)[1][0] == 1
    assert mean_and_spread(X, None)[1][0] == 0


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_spreads_of_float32_neither_overflow_nor_vanish(scale):
    X = columns(a=1.0, b=2.0)
    spread = mean_and_spread((X * scale).astype(np.float32), None)[1]
    np.testing.assert_allclose(spread, X.std(axis=0) * scale, rtol=1e-4)


def test_sums_of_many_rows_do_not_drift():
    X = np.tile(np.array([[1996.0], [2005.0], [2014.0]], np.float32), (1_000_000, 1))
    mean, spread = mean_and_spread(X, None)
    assert mean[0] == pytest.approx(2005, abs=1e-6)
    assert spread[0] == pytest.approx(54**0.5, rel=1e-6)


def test_weights_count_as_repetitions():
    X = columns(rows=20, a=1.0, b=200.0)
    weight = np.arange(20) % 3
    repeated = np.repeat(X, weight, axis=0)
    mean, spread = mean_and_spread(X, torch.from_numpy(weight.astype(float)))
    np.testing.assert_allclose(mean, repeated.mean(axis=0))
    np.testing.assert_allclose(spread, repeated.std(axis=0))


def test_a_time_in_seconds_beside_small_features_does_not_spoil_a_classifier():
    rng = np.random.default_rng(0)
    X = np.c_[1.7e9 + rng.uniform(0, 1e7, 600), rng.normal(size=(600, 2))]
    y = (X[:, 1] + X[:, 2] > 0).astype(int)
    model = FPEClassifier(hidden=4, epochs=30, random_state=0).fit(X[:400], y[:400])
    assert model.score(X[400:], y[400:]) > 0.9
