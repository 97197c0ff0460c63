"""How often sparse neurons see whole clauses, and how often they see two (section A.5).

The model: C clauses of k literals each, n = C·k inputs; each of αH sparse neurons reads n/α inputs drawn at
random. A neuron *covers* a clause if it reads all its literals; it is a *collision* if a neuron covers
two. A dense network of H neurons covers everything, and collides everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fpe.errors import ArgumentError, raise_problems


@dataclass(frozen=True)
class Setting:
    """A formula and a network.

    Parameters
    ----------
    clauses, literals : int
        C and k.
    neurons : int
        H, of the dense network.
    factor : int, default 2
        α; must divide the number of inputs.

    Raises
    ------
    ArgumentError
        If a number is below 1, or the factor does not divide C·k.

    Examples
    --------
    >>> setting = Setting(clauses=8, literals=4, neurons=8)
    >>> round(setting.coverage, 4), setting.coverage_approximation
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
                f"{self.literals} literals); each sparse neuron reads a whole number of them."
            )

    @property
    def inputs(self) -> int:
        """N = C·k."""
        return self.clauses * self.literals

    @property
    def coverage(self) -> float:
        """P[a sparse neuron covers a given clause] = C(n−k, n/α−k) / C(n, n/α)."""
        return self._reads(self.literals)

    @property
    def pair_coverage(self) -> float:
        """P[a sparse neuron covers two given clauses] = C(n−2k, n/α−2k) / C(n, n/α)."""
        return self._reads(2 * self.literals)

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
    def sparse_collisions(self) -> float:
        """Expected collisions of the sparse network, αH · C(C − 1) / 2 · P[covers both]."""
        return self.factor * self.dense_collisions * self.pair_coverage

    @property
    def collision_ratio(self) -> float:
        """Sparse over dense collisions, α · P[covers both]."""
        return self.factor * self.pair_coverage

    @property
    def collision_ratio_approximation(self) -> float:
        """The paper's α^(−(2k−1)), for large n."""
        return float(self.factor) ** (1 - 2 * self.literals)

    def neurons_needed(self, delta: float) -> float:
        """Return the αH that covers all clauses with probability 1 − δ: ln(C / δ) / p."""
        return math.log(self.clauses / delta) / self.coverage

    def _reads(self, which: int) -> float:
        """Return the probability that a sparse neuron reads all of so many given inputs."""
        degree = self.inputs // self.factor
        if which > degree:
            return 0.0
        return math.comb(self.inputs - which, degree - which) / math.comb(self.inputs, degree)


@dataclass(frozen=True)
class Estimate:
    """A mean over simulated networks.

    Attributes
    ----------
    mean : float
        The mean.
    error : float
        Its standard error.
    """

    mean: float
    error: float

    def distance(self, exact: float) -> float:
        """Return how many standard errors the mean is from a value."""
        if self.error == 0:
            return 0.0 if self.mean == exact else math.inf
        return abs(self.mean - exact) / self.error


def simulate(setting: Setting, networks: int = 20_000, seed: int = 0) -> dict[str, Estimate]:
    """Draw sparse networks and count.

    Parameters
    ----------
    setting : Setting
        Of what kind.
    networks : int, default 20000
        How many; at least 2.
    seed : int, default 0
        The same seed gives the same counts.

    Returns
    -------
    dict of Estimate
        ``coverage``: share of (neuron, clause) pairs covered; ``missed``: share of networks with a clause
        that no neuron covers; ``collision_ratio``: collisions over the dense network's.

    Raises
    ------
    ArgumentError
        If there are fewer than two networks.
    """
    if networks < 2:
        raise ArgumentError(f"networks is {networks}; give at least 2, to tell how far the mean may be off.")
    rng = np.random.default_rng(seed)
    covering, missed, collisions = [], [], []
    at_a_time = max(1, 2**22 // (setting.inputs * setting.factor * setting.neurons))
    for start in range(0, networks, at_a_time):
        count = min(at_a_time, networks - start)
        covered = _covered(setting, count, rng)
        seen = covered.sum(axis=2)
        covering.append(covered.mean(axis=(1, 2)))
        missed.append(covered.any(axis=1).sum(axis=1) < setting.clauses)
        collisions.append((seen * (seen - 1) // 2).sum(axis=1))
    ratio = np.concatenate(collisions) / max(1.0, setting.dense_collisions)
    return {
        "coverage": _estimate(np.concatenate(covering)),
        "missed": _estimate(np.concatenate(missed)),
        "collision_ratio": _estimate(ratio),
    }


def _covered(setting: Setting, networks: int, rng: np.random.Generator) -> np.ndarray:
    """Draw networks; say which neuron covers which clause, (networks, αH, clauses)."""
    neurons = setting.factor * setting.neurons
    reads = np.arange(setting.inputs) < setting.inputs // setting.factor
    drawn = rng.permuted(np.broadcast_to(reads, (networks * neurons, setting.inputs)), axis=1)
    by_clause = drawn.reshape(networks, neurons, setting.clauses, setting.literals)
    return np.asarray(by_clause.sum(axis=3) == setting.literals)


def _estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))
