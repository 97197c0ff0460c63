"""The ways of paying by name."""

from __future__ import annotations

from fpe.errors import ArgumentError, did_you_mean
from fpe.expansion.children import ChildPruning
from fpe.expansion.columns import InputPruning
from fpe.expansion.pruning import MagnitudePruning, Pruning

PRUNES: dict[str, Pruning] = {
    "magnitude": MagnitudePruning(),
    "balanced": MagnitudePruning(readers=0.5),
    "columns": InputPruning(),
    "children": ChildPruning(),
}

_NAMES = "'magnitude', 'balanced', 'columns' and 'children'"


def as_pruning(prune: str | Pruning) -> Pruning:
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
    if isinstance(prune, type) or not isinstance(prune, Pruning):
        raise ArgumentError(f"prune is {prune!r}; give one of {_NAMES}.")
    return prune
