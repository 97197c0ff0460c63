"""What simulated and trained networks say of the paper's theory of coverage."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from fpe_reproduction.experiments.findings import Results
from fpe_reproduction.paper.measures import Estimates, Measure, clauses
from fpe_reproduction.statistics import Interval, proportion
from fpe_reproduction.theory import CoverageModel, Estimate, simulate

#: Formulas that are simulated: clauses, literals, neurons, factor.
SIMULATED = (
    (3, 4, 8, 2), (8, 4, 8, 2), (16, 4, 8, 2), (32, 4, 8, 2), (8, 2, 8, 2), (8, 2, 8, 4), (8, 3, 16, 2),
    (8, 4, 48, 2), (32, 4, 64, 2),
)  # fmt: skip
#: The chance to miss a clause that section A.5's condition on the number of neurons allows.
MISSED = 0.1


@functools.cache
def _simulated(model: CoverageModel, quick: bool) -> dict[str, Estimate]:
    return simulate(model, 2_000 if quick else 20_000, seed=0)


def _setting(numbers: Sequence[int]) -> str:
    return "C, k, H, α = " + ", ".join(map(str, numbers))


def _normal(value: float, error: float) -> Interval:
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def simulated(name: str, expected: str, fewest: int = 0) -> Measure:
    """Return by how much simulated networks of at least `fewest` inputs differ from a formula, relatively."""

    def estimate(results: Results) -> Estimates:
        found = {}
        for numbers in SIMULATED:
            model = CoverageModel(*numbers)
            formula = getattr(model, expected)
            if model.inputs >= fewest and formula:
                own = _simulated(model, results.quick)[name]
                found[_setting(numbers)] = _normal(own.mean / formula - 1, own.error / formula)
        return found

    return estimate


def missing(results: Results) -> Estimates:
    """Return by how much simulated networks miss a clause more often than a union bound below 1 allows."""
    found = {}
    for numbers in SIMULATED:
        model = CoverageModel(*numbers)
        if model.missed_bound < 1:
            own = _simulated(model, results.quick)["missed"]
            found[_setting(numbers)] = _normal(own.mean - model.missed_bound, own.error)
    return found


def enough(results: Results) -> Estimates:
    """Return how often simulated networks cover all clauses that have as many neurons as A.5 asks for."""
    found = {}
    for numbers in SIMULATED:
        model = CoverageModel(*numbers)
        if model.factor * model.neurons >= math.log(model.clauses / MISSED) / model.coverage:
            own = _simulated(model, results.quick)["missed"]
            found[_setting(numbers)] = _normal(1 - own.mean, own.error)
    return found


def covered(results: Results) -> Estimates:
    """Return the share of trained networks, split at random, whose neurons cover all clauses."""
    own = clauses(results)
    values = own.values("random", "covered_clauses")
    return {f"{count:g} clauses": proportion(values[count] == count) for count in values}
