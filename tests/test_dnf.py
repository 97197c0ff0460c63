"""Samples of DNF formulas are what A.2.1 says they are."""

import numpy as np
import pytest

from fpe.data import dnf
from fpe.data.dnf import satisfied
from fpe.errors import ArgumentError


def on(X):
    return X > 0.5


@pytest.mark.parametrize(("clauses", "literals"), [(2, 4), (3, 4), (8, 4), (32, 4), (5, 3), (10, 2)])
def test_half_of_the_samples_satisfy_the_formula_and_labels_say_so(clauses, literals):
    X, y, labels = dnf(clauses, literals=literals, samples=1000, seed=3)
    assert X.shape == (1000, clauses * literals)
    assert y.sum() == 500
    assert np.array_equal(satisfied(on(X), literals).any(axis=1), y == 1)
    assert np.array_equal(labels, np.repeat(np.arange(clauses), literals))


def test_active_bits_are_within_the_bounds_and_reach_them():
    X, y, _ = dnf(8, samples=8000, active=(0.25, 0.5))
    positive = on(X)[y == 1].sum(axis=1)
    assert (positive.min(), positive.max()) == (8, 16)
    negative = on(X)[y == 0].sum(axis=1)
    assert negative.max() <= 16
    assert negative.min() < 8, "a literal of a satisfied clause was flipped"


def test_half_of_the_negatives_are_one_literal_short_of_a_clause():
    """A flipped sample has a clause with all but one literal on; few of the rejected ones have."""
    X, y, _ = dnf(8, samples=8000, active=(0.25, 0.25))
    nearly = (on(X)[y == 0].reshape(4000, 8, 4).sum(axis=2) == 3).any(axis=1)
    flipped = on(X)[y == 0].sum(axis=1) == 7  # one of eight was turned off
    assert 0.45 < flipped.mean() < 0.55
    assert nearly[flipped].all()


def test_values_are_drawn_from_their_ranges():
    X, _, _ = dnf(4, samples=2000, true=(0.7, 0.8), false=(0.1, 0.2))
    high, low = X[on(X)], X[~on(X)]
    assert 0.7 <= high.min() < 0.705 < 0.795 < high.max() <= 0.8
    assert 0.1 <= low.min() < 0.105 < 0.195 < low.max() <= 0.2
    assert X.dtype == np.float32


def test_every_literal_is_flipped_and_every_clause_chosen_equally_often():
    X, y, _ = dnf(8, samples=40_000)
    chosen = satisfied(on(X)[y == 1], 4).mean(axis=0)
    assert np.ptp(chosen) < 0.02
    rates = on(X)[y == 0].mean(axis=0)
    assert np.ptp(rates) < 0.02


def test_the_seed_decides():
    one, same, other = dnf(6, seed=5), dnf(6, seed=5), dnf(6, seed=6)
    assert np.array_equal(one.X, same.X)
    assert not np.array_equal(one.X, other.X)


def test_data_share_nothing_between_training_and_test_seeds():
    train, test = dnf(8, seed=0), dnf(8, seed=1)
    assert not set(map(bytes, train.X)) & set(map(bytes, test.X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clauses": 1}, "at most 2 of 4 variables may be on"),
        ({"clauses": 0}, "clauses is 0; give an integer of at least 1"),
        ({"clauses": 8, "samples": 101}, "samples is 101; give an even number"),
        ({"clauses": 8, "active": (0.9, 1.0)}, "lower the lower bound to 0.75 or less"),
        ({"clauses": 8, "active": (0.0, 0.1)}, "too few for a clause of 4; raise the upper bound to 0.125"),
        ({"clauses": 3, "active": (0.4, 0.41)}, "no whole number of 12 variables lies within"),
        ({"clauses": 8, "active": (0.6, 0.5)}, "give two numbers from 0 to 1, the smaller one first"),
        ({"clauses": 8, "false": (0.0, 0.95)}, "they must not overlap"),
        ({"clauses": 20, "literals": 1, "active": (0.05, 0.1)}, "1 of 20 variables must be on"),
        ({"clauses": 30, "active": (0.74, 0.75)}, "samples satisfied a clause in each of 1000 draws"),
    ],
)
def test_impossible_settings_say_what_is_possible(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        dnf(**{"samples": 100, **arguments})


def test_all_problems_are_reported_at_once():
    with pytest.raises(ArgumentError) as caught:
        dnf(0, literals=0, samples=3)
    assert str(caught.value).count("give an integer") == 3
