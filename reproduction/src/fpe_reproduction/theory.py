"""How often sparse neurons see whole clauses, and how often they see two (section A.5).

The model: C clauses of k literals each, n = C·k inputs; each of αH sparse neurons has n/α random inputs. A
neuron *covers* a clause if it has all its literals; a neuron that covers two is a *collision*. A dense
network of H neurons covers everything, and collides everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fpe.errors import ArgumentError, raise_problems


@dataclass(frozen=True)
class CoverageModel:
    """A formula of C clauses of k literals, and a network of H neurons; α must divide C·k.

    Examples
    --------
    >>> model = CoverageModel(clauses=8, literals=4, neurons=8)
    >>> round(model.coverage, 4), model.coverage_approximation
    (0.0506, 0.0625)
    """

    clauses: int
    literals: int
    neurons: int
    factor: int = 2

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}; give an integer of at least 1."
            for name in ("clauses", "literals", "neurons", "factor")
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1
        ]
        raise_problems(problems, ArgumentError, "the setting")
        if self.inputs % self.factor:
            raise ArgumentError(
                f"factor {self.factor} does not divide {self.inputs} inputs ({self.clauses} clauses of "
                f"{self.literals} literals); each sparse neuron has a whole number of them."
            )

    @property
    def inputs(self) -> int:
        """N = C·k."""
        return self.clauses * self.literals

    @property
    def coverage(self) -> float:
        """P[a sparse neuron covers a given clause] = C(n−k, n/α−k) / C(n, n/α)."""
        return self._has_all(self.literals)

    @property
    def coverage_approximation(self) -> float:
        """The paper's α^(−k), for large n."""
        return float(self.factor) ** -self.literals

    @property
    def missed_bound(self) -> float:
        """The union bound on P[some clause is covered by no neuron], C · (1 − p)^(αH); may exceed 1."""
        return float(self.clauses * (1 - self.coverage) ** (self.factor * self.neurons))

    @property
    def dense_collisions(self) -> float:
        """Collisions of the dense network, H · C(C − 1) / 2."""
        return self.neurons * math.comb(self.clauses, 2)

    @property
    def collision_ratio(self) -> float:
        """Sparse over dense collisions, α · P[covers both of two given clauses]."""
        return self.factor * self._has_all(2 * self.literals)

    @property
    def collision_ratio_approximation(self) -> float:
        """The paper's α^(−(2k−1)), for large n."""
        return float(self.factor) ** (1 - 2 * self.literals)

    def _has_all(self, given: int) -> float:
        """Return the probability that a sparse neuron has all of this many given inputs."""
        degree = self.inputs // self.factor
        if given > degree:
            return 0.0
        return math.comb(self.inputs - given, degree - given) / math.comb(self.inputs, degree)


@dataclass(frozen=True)
class Estimate:
    """A mean over simulated networks and its standard error."""

    mean: float
    error: float

    def distance(self, exact: float) -> float:
        """Return how many standard errors the mean is from a value."""
        if self.error == 0:
            return 0.0 if self.mean == exact else math.inf
        return abs(self.mean - exact) / self.error


def simulate(model: CoverageModel, networks: int = 20_000, seed: int = 0) -> dict[str, Estimate]:
    """Draw sparse networks and count.

    Returns ``coverage``, the share of (neuron, clause) pairs covered; ``missed``, the share of networks with
    a clause that no neuron covers; and ``collision_ratio``, collisions over the dense network's.
    """
    if networks < 2:
        raise ArgumentError(f"networks is {networks}; give at least 2, to tell how far the mean may be off.")
    rng = np.random.default_rng(seed)
    inputs, neurons = model.inputs, model.factor * model.neurons
    has = np.arange(inputs) < inputs // model.factor
    drawn: dict[str, list[np.ndarray]] = {"coverage": [], "missed": [], "collision_ratio": []}
    at_a_time = max(1, 2**22 // (inputs * neurons))
    for start in range(0, networks, at_a_time):
        count = min(at_a_time, networks - start)
        wiring = rng.permuted(np.broadcast_to(has, (count * neurons, inputs)), axis=1)
        covered = np.all(wiring.reshape(count, neurons, model.clauses, model.literals), axis=3)
        seen = covered.sum(axis=2)
        drawn["coverage"].append(covered.mean(axis=(1, 2)))
        drawn["missed"].append(np.any(covered, axis=1).sum(axis=1) < model.clauses)
        pairs = (seen * (seen - 1) // 2).sum(axis=1)
        drawn["collision_ratio"].append(pairs / max(1.0, model.dense_collisions))
    return {name: _estimate(np.concatenate(parts)) for name, parts in drawn.items()}


def _estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))
