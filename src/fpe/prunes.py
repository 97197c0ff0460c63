"""The ways of paying by name."""

from __future__ import annotations

from fpe.budget import Magnitude, Prune
from fpe.children import Children
from fpe.columns import Columns
from fpe.errors import ArgumentError, did_you_mean

PRUNES: dict[str, Prune] = {
    "magnitude": Magnitude(),
    "balanced": Magnitude(readers=0.5),
    "columns": Columns(),
    "children": Children(),
}

_NAMES = "'magnitude', 'balanced', 'columns' and 'children'"


def as_prune(prune: str | Prune) -> Prune:
    """Turn a name into its way of paying; an object passes through.

    Raises
    ------
    ArgumentError
        For an unknown name, or for what is no way of paying.
    """
    if isinstance(prune, str):
        if prune in PRUNES:
            return PRUNES[prune]
        raise ArgumentError(f"unknown prune {prune!r}; allowed are {_NAMES}.{did_you_mean(prune, PRUNES)}")
    if isinstance(prune, type) or not isinstance(prune, Prune):
        raise ArgumentError(f"prune is {prune!r}; give one of {_NAMES}.")
    return prune
