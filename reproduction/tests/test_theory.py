"""The formulas of A.5 against counting, by hand and by simulation."""

from itertools import combinations

import pytest

from fpe.errors import ArgumentError
from fpe_reproduction.theory import CoverageModel, simulate


def counted(setting, clauses):
    """Count, over all ways to choose the inputs of a neuron, how many have the first so many clauses."""
    wanted = set(range(clauses * setting.literals))
    ways = list(combinations(range(setting.inputs), setting.inputs // setting.factor))
    return sum(wanted <= set(way) for way in ways) / len(ways)


@pytest.mark.parametrize(
    "setting",
    [CoverageModel(3, 2, 4), CoverageModel(4, 3, 1), CoverageModel(6, 2, 2, 3), CoverageModel(2, 4, 8)],
)
def test_coverage_is_what_counting_gives(setting):
    assert setting.coverage == pytest.approx(counted(setting, 1))
    assert setting.collision_ratio == pytest.approx(setting.factor * counted(setting, 2))


@pytest.mark.parametrize(
    "setting", [CoverageModel(8, 4, 8), CoverageModel(6, 2, 3, 3), CoverageModel(4, 3, 2)]
)
def test_simulation_is_within_three_standard_errors(setting):
    simulated = simulate(setting, networks=4000, seed=1)
    assert simulated["coverage"].distance(setting.coverage) < 3
    assert simulated["collision_ratio"].distance(setting.collision_ratio) < 3
    assert simulated["missed"].mean <= setting.missed_bound


def test_a_wrong_formula_would_be_noticed():
    """The paper's approximation, taken for exact, lies far outside of the simulation."""
    setting = CoverageModel(8, 4, 8)
    assert simulate(setting, 4000)["coverage"].distance(setting.coverage_approximation) > 10


def test_approximations_come_near_for_many_clauses():
    setting = CoverageModel(1000, 4, 8)
    assert setting.coverage == pytest.approx(setting.coverage_approximation, rel=0.01)
    assert setting.collision_ratio == pytest.approx(setting.collision_ratio_approximation, rel=0.03)


def test_numbers_by_hand():
    """4 clauses of 1 literal, 2 neurons, α = 2: p = 1/2, p2 = C(2, 0) / C(4, 2) = 1/6."""
    setting = CoverageModel(4, 1, 2)
    assert (setting.coverage, setting.dense_collisions) == (0.5, 12)
    assert setting.collision_ratio == pytest.approx(2 / 6)
    assert setting.missed_bound == 4 * 0.5**4


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match="clauses is 0; give an integer of at least 1"):
        CoverageModel(0, 4, 8)
    with pytest.raises(ArgumentError, match="factor 3 does not divide 8 inputs"):
        CoverageModel(2, 4, 8, 3)
    with pytest.raises(ArgumentError, match="give at least 2"):
        simulate(CoverageModel(2, 4, 8), networks=1)
