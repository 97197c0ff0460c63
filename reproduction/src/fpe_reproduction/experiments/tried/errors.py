"""Splits by the errors of the parent: where its gradients disagree, and what it cannot combine."""

from __future__ import annotations

import numpy as np

from fpe.expansion.clusters import clustered
from fpe_reproduction.experiments.tried.inputs import each_by_its_own, spectral
from fpe_reproduction.experiments.tried.sight import Sight

#: Width of the kernel that stands for the second derivative of ReLU, in standard deviations.
KERNEL = 0.25


def by_conflict(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Together the inputs that the classes pull the same way: cosines of the gradients by class."""
    active = sight.pulls * (sight.preactivations > 0)
    x = sight.X.double().cpu().numpy()
    gradients = np.stack([active[rows].T @ x[rows] / len(x) for rows in sight.classes])  # classes first
    length = np.linalg.norm(gradients, axis=0)
    gradients /= np.where(length > 0, length, 1)
    return each_by_its_own([g.T @ g for g in gradients.transpose(1, 0, 2)], factor, rng)


def steepest(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """The split that lowers the loss most, to second order (Liu, Wu and Wang, 2019).

    To split neuron i into halves of the signs s is to move two copies of it by ``± s ∘ w / 2``. The loss
    changes by ``(s ∘ w)ᵀ S (s ∘ w) / 4`` with the splitting matrix ``S = E[δ_i relu''(a_i) x xᵀ]``, in which
    a narrow Gaussian stands for ``relu''``.
    """
    x = sight.X.double().cpu().numpy()
    width = KERNEL * sight.preactivations.std(axis=0) + 1e-9
    bend = sight.pulls * np.exp(-((sight.preactivations / width) ** 2) / 2) / width
    return np.stack(
        [
            spectral(-np.outer(w, w) * ((x * bend[:, [i]]).T @ x / len(x)), factor, rng)
            for i, w in enumerate(sight.weight)
        ]
    )


def interactions(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Together the inputs whose products the parent's errors still depend on.

    A child combines its own inputs only, and sums of inputs are learnt already: what is left in the errors
    ``r`` is interaction, ``Σ_c E[r_c x_j x_k]²`` over the outputs.
    """
    errors = sight.errors - sight.errors.mean(axis=0)
    x = sight.standard
    moments = (x.T @ (x * r[:, None]) / len(x) for r in errors.T)
    affinity = sum((m**2 for m in moments), np.zeros((x.shape[1], x.shape[1])))
    np.fill_diagonal(affinity, 0)
    return clustered(affinity, len(sight.weight), factor, rng)
