"""Parts of the training data that are held out, to compare networks on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

#: Samples below which candidates are compared on several parts of the data.
FEW, VERY_FEW, MOST_FOLDS = 5000, 1000, 5


@dataclass(frozen=True)
class Fold:
    """A part of the data to train on, and the part to compare on: (samples, features) and targets."""

    X: Tensor
    y: Tensor
    X_val: Tensor
    y_val: Tensor
    weight: Tensor | None = None


def hold_out(codes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the samples to train on, and of those held out.

    Of each class number in `codes` the fraction is held out, at least one sample, but never all of them.
    """
    rng = np.random.default_rng(seed)
    held = []
    for code in range(codes.max() + 1):
        own = rng.permutation(np.flatnonzero(codes == code))
        held.append(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(codes)), out), out


def fold_count(samples: int) -> int:
    """Return on how many parts of the data candidates are compared: more if there are few samples."""
    return MOST_FOLDS if samples < VERY_FEW else 2 if samples < FEW else 1
