"""Balanced clusters: who belongs together, with as many in each cluster."""

from __future__ import annotations

import numpy as np
from torch import Tensor

#: Members of each child that are looked at for a swap, those first who would gain most by leaving.
_LOOKED_AT = 12
#: Partitions that are searched for at most; the neurons of a wider layer take turns with them.
MOST_DRAWS = 32


def clustered(affinity: np.ndarray, neurons: int, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a partition for each neuron that keeps together what belongs together.

    Each begins at a balanced random partition and is improved by swaps, so that neurons differ where
    the affinity leaves a choice.

    Parameters
    ----------
    affinity : ndarray
        How much two inputs belong together, (inputs, inputs), symmetric; below 0 they are kept apart. The
        diagonal is not read.
    neurons, factor : int
        Rows to draw, and children of each.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray
        Child of each input, (neurons, inputs).
    """
    even = np.arange(len(affinity)) % factor
    found = [swapped(affinity, rng.permutation(even), factor) for _ in range(min(neurons, MOST_DRAWS))]
    return np.stack([found[i % MOST_DRAWS] for i in range(neurons)])


def swapped(affinity: np.ndarray, child: np.ndarray, factor: int) -> np.ndarray:
    """Swap inputs between children while that raises the affinity within children.

    The best of the swaps that are looked at comes first (Kernighan and Lin, 1970, without their sequences
    of swaps). Sizes stay as they are.

    Parameters
    ----------
    affinity : ndarray
        Shape (inputs, inputs), symmetric; the diagonal is not read.
    child : ndarray of int
        The partition to begin with, (inputs,), each child with an input at least. Not changed.
    factor : int
        Number of children.

    Returns
    -------
    ndarray of int
        Shape (inputs,).
    """
    affinity = np.array(affinity, dtype=float)
    np.fill_diagonal(affinity, 0)
    child = np.array(child)
    to = affinity @ np.eye(factor)[child]  # affinity of each input to each child
    least = 1e-12 * np.abs(affinity).max(initial=0)
    for _ in range(len(child)):
        gain, one, other = max(
            (_best_swap(affinity, to, child, a, b) for a in range(factor) for b in range(a)),
            key=lambda swap: swap[0],
        )
        if gain <= least:
            break
        a, b = child[one], child[other]
        to[:, a] += affinity[:, other] - affinity[:, one]
        to[:, b] += affinity[:, one] - affinity[:, other]
        child[one], child[other] = b, a
    return child


def _best_swap(
    affinity: np.ndarray, to: np.ndarray, child: np.ndarray, a: int, b: int
) -> tuple[float, int, int]:
    """Return what the best swap between two children gains, and its inputs."""
    one, one_gains = _leaving(to, child, a, b)
    other, other_gains = _leaving(to, child, b, a)
    gains = one_gains[:, None] + other_gains - 2 * affinity[np.ix_(one, other)]
    best = int(gains.argmax())
    i, j = divmod(best, len(other))
    return float(gains.flat[best]), int(one[i]), int(other[j])


def _leaving(to: np.ndarray, child: np.ndarray, here: int, there: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of a child that gain most by going to another, and what they gain."""
    members = np.flatnonzero(child == here)
    gains = to[members, there] - to[members, here]
    if len(members) > _LOOKED_AT:
        first = np.argpartition(-gains, _LOOKED_AT)[:_LOOKED_AT]
        members, gains = members[first], gains[first]
    return members, gains


def correlations(inputs: Tensor) -> np.ndarray:
    """Return the correlations of inputs over samples, (samples, inputs) to (inputs, inputs).

    An input that never changes is correlated with nothing.
    """
    x = inputs.detach().cpu().double().numpy()
    x = x - x.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0))
    x /= np.where(norm > 1e-12 * norm.max(initial=0), norm, np.inf)
    return np.asarray(x.T @ x)
