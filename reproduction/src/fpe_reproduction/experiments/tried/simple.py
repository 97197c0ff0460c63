"""Splits by the weights of each neuron, in order of size."""

from __future__ import annotations

import numpy as np

from fpe_reproduction.experiments.tried.sight import Sight


def ordered(score: np.ndarray, factor: int) -> np.ndarray:
    """Give the smallest of each row to child 0, the next to child 1, …, as many to each."""
    child = np.empty(score.shape, dtype=int)
    ranks = np.broadcast_to(np.arange(score.shape[1]) * factor // score.shape[1], score.shape)
    np.put_along_axis(child, score.argsort(axis=1, kind="stable"), ranks, axis=1)
    return child


def by_sign(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Negative weights to one child, positive ones to another, balanced at the median."""
    return ordered(sight.weight, factor)


def by_magnitude(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Small weights to one child, large ones to another."""
    return ordered(np.abs(sight.weight), factor)
