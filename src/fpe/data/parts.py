"""Training and test parts as they were read, before they are checked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: What a test part is called, in files, columns and data sets; the first that is there. ImageNet's test part
#: has no labels.
TESTS = ("test", "validation", "valid", "val", "dev")
TRAINS = ("train", "training")


@dataclass(frozen=True)
class Raw:
    """Arrays of a training part, and of a test part if there is one.

    Attributes
    ----------
    X, X_test : ndarray
        Features, (samples, …).
    y, y_test : ndarray
        Labels of any type, (samples,).
    classes : ndarray or None
        Names of the classes, where labels are numbers from 0.
    features : list of str
        The features' names; empty if they have none.
    label : str or None
        Name of the column of labels.
    notes : list of str
        What was left out or guessed.
    """

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    classes: np.ndarray | None = None
    features: list[str] = field(default_factory=list)
    label: str | None = None
    notes: list[str] = field(default_factory=list)
