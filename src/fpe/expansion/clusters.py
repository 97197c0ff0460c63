"""Balanced clusters of inputs that belong together, by correlations on data."""

from __future__ import annotations

import numpy as np
from torch import Tensor

#: Members of each child that are considered for a swap, those first that gain most by moving.
_CONSIDERED = 12
#: Partitions that are searched for at most; the neurons of a wider layer take turns with them.
MOST_DRAWS = 32


def clustered(affinity: np.ndarray, neurons: int, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a balanced random partition for each neuron and improve it by swaps, (neurons, inputs).

    `affinity`, (inputs, inputs), is symmetric; below 0 inputs are kept apart.
    """
    even = np.arange(len(affinity)) % factor
    found = [swapped(affinity, rng.permutation(even), factor) for _ in range(min(neurons, MOST_DRAWS))]
    return np.stack([found[i % MOST_DRAWS] for i in range(neurons)])


def swapped(affinity: np.ndarray, child: np.ndarray, factor: int) -> np.ndarray:
    """Swap inputs between children, the best first, while that raises the affinity within children.

    It is the method of Kernighan and Lin (1970) without their sequences of swaps; `child` is not changed.
    """
    affinity = np.array(affinity, dtype=float)
    np.fill_diagonal(affinity, 0)
    child = np.array(child)
    to = affinity @ np.eye(factor)[child]  # affinity of each input to each child
    least = 1e-12 * np.abs(affinity).max(initial=0)

    def movable(here: int, there: int) -> tuple[np.ndarray, np.ndarray]:
        members = np.flatnonzero(child == here)
        gains = to[members, there] - to[members, here]
        if len(members) > _CONSIDERED:
            first = np.argpartition(-gains, _CONSIDERED)[:_CONSIDERED]
            members, gains = members[first], gains[first]
        return members, gains

    def best_swap(a: int, b: int) -> tuple[float, int, int]:
        (one, one_gains), (other, other_gains) = movable(a, b), movable(b, a)
        gains = one_gains[:, None] + other_gains - 2 * affinity[np.ix_(one, other)]
        i, j = divmod(int(gains.argmax()), len(other))
        return float(gains[i, j]), int(one[i]), int(other[j])

    for _ in range(len(child)):
        swaps = (best_swap(a, b) for a in range(factor) for b in range(a))
        gain, one, other = max(swaps, key=lambda swap: swap[0])
        if gain <= least:
            break
        a, b = child[one], child[other]
        to[:, a] += affinity[:, other] - affinity[:, one]
        to[:, b] += affinity[:, one] - affinity[:, other]
        child[one], child[other] = b, a
    return child


def correlations(inputs: Tensor) -> np.ndarray:
    """Return the correlations of (samples, inputs), (inputs, inputs); of constant inputs 0."""
    x = inputs.detach().cpu().double().numpy()
    x = x - x.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0))
    x /= np.where(norm > 1e-12 * norm.max(initial=0), norm, np.inf)
    return np.asarray(x.T @ x)
