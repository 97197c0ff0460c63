"""Splits that were tried against a random one; each looks at a parent and at data.

All are balanced, but for the groups of a dictionary. They are kept here so that the comparison can be run
again; what is worth using is in `fpe.expansion`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fpe.expansion.splits import FixedSplit
from fpe_reproduction.experiments.tried import errors, inputs, learned, simple
from fpe_reproduction.experiments.tried.sight import Sight

#: By the kind that stands in results.
TRIED: dict[str, Callable[[Sight, int, np.random.Generator], np.ndarray]] = {
    "coactivation": inputs.coactivation,
    "coactivation-apart": inputs.coactivation_apart,
    "dictionary": inputs.by_dictionary,
    "gram-data": inputs.gram_on_data,
    "decorrelated": inputs.decorrelated,
    "correlated": inputs.correlated,
    "by-class": inputs.by_class,
    "sign": simple.by_sign,
    "magnitude": simple.by_magnitude,
    "conflict": errors.by_conflict,
    "steepest": errors.steepest,
    "interactions": errors.interactions,
    "learned": learned.learned,
    "scout": learned.scout,
}

#: Those that train networks of their own, on all of the training data.
LEARNED = ("learned", "scout")


def tried(kind: str, sight: Sight, factor: int, seed: int) -> FixedSplit:
    """Return a split of this kind for `fpe.expand`."""
    return FixedSplit(TRIED[kind](sight, factor, np.random.default_rng(seed)))
