"""Splits by what the inputs do on data."""

from __future__ import annotations

import warnings

import numpy as np

from fpe.expansion.clusters import clustered, correlations, swapped
from fpe.expansion.splits import LabelSplit
from fpe_reproduction.experiments.tried.sight import Sight

#: Sweeps over the data and mini-batches of the dictionary, and its penalty.
SWEEPS, BATCH, PENALTY = 20, 128, 1.0


def each_by_its_own(affinities: list[np.ndarray], factor: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster the inputs of each neuron by an affinity of its own."""
    return np.stack([clustered(affinity, 1, factor, rng)[0] for affinity in affinities])


def coactivation(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Correlated inputs together, as `fpe.CorrelationSplit`."""
    return clustered(correlations(sight.X), len(sight.weight), factor, rng)


def coactivation_apart(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Correlated inputs spread over the children, so that each of them sees a little of everything."""
    return clustered(-correlations(sight.X), len(sight.weight), factor, rng)


def gram_on_data(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Together what the neurons use together and what varies together: the Gram matrix times covariance."""
    affinity = (sight.weight.T @ sight.weight) * sight.covariance
    return clustered(affinity, len(sight.weight), factor, rng)


def decorrelated(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Children whose pre-activations vary with each other as little as can be."""
    return each_by_its_own([np.outer(w, w) * sight.covariance for w in sight.weight], factor, rng)


def correlated(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Children whose pre-activations vary with each other as much as can be: the function changes least."""
    return each_by_its_own([-np.outer(w, w) * sight.covariance for w in sight.weight], factor, rng)


def by_class(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Together what speaks for the same classes: contributions ``w_j E[x_j | class]``, centred."""
    means = np.stack([sight.centred[rows].mean(axis=0) for rows in sight.classes])
    return each_by_its_own([(means * w).T @ (means * w) for w in sight.weight], factor, rng)


def by_dictionary(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Inputs grouped by the feature of a sparse dictionary that weighs most on them (as an SAE's would).

    A dictionary of about twice the root of the inputs; the groups are dealt out as those of `LabelSplit`.
    """
    from sklearn.decomposition import MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    inputs = sight.weight.shape[1]
    features = min(inputs, max(2 * factor, round(2 * inputs**0.5)))
    learner = MiniBatchDictionaryLearning(
        features,
        alpha=PENALTY,
        max_iter=SWEEPS,
        batch_size=BATCH,
        random_state=int(rng.integers(2**31)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        atoms = learner.fit(sight.standard).components_
    labels = np.abs(atoms).argmax(axis=0)
    if len(np.unique(labels)) < factor:
        labels = np.arange(inputs)
    return LabelSplit(labels).assign(sight.parent[0].weight, factor, rng).numpy()  # type: ignore[arg-type]


def spectral(affinity: np.ndarray, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster by the leading eigenvector, cut at its quantiles, then by swaps."""
    leading = np.linalg.eigh(affinity)[1][:, -1]
    child = np.empty(len(leading), dtype=int)
    child[leading.argsort(kind="stable")] = np.arange(len(leading)) * factor // len(leading)
    return swapped(affinity, child, factor)
