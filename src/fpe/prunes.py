"""The ways of paying by name."""

from __future__ import annotations

import re

from fpe.budget import Magnitude, Prune
from fpe.columns import Columns
from fpe.errors import ArgumentError, did_you_mean

PRUNES: dict[str, Prune] = {
    "magnitude": Magnitude(),
    "balanced": Magnitude(readers=0.5),
    "columns": Columns(),
}

_NAMES = "'magnitude', 'balanced', 'columns' and 'columns-2' (or another number of groups)"


def as_prune(prune: str | Prune) -> Prune:
    """Turn a name into its way of paying; an object passes through.

    ``"columns-2"`` is ``Columns(reader_groups=2)``.

    Raises
    ------
    ArgumentError
        For an unknown name, or for what is no way of paying.
    """
    if isinstance(prune, str):
        if prune in PRUNES:
            return PRUNES[prune]
        if cut := re.fullmatch(r"columns-([1-9]\d*)", prune):
            return Columns(reader_groups=int(cut[1]))
        raise ArgumentError(f"unknown prune {prune!r}; allowed are {_NAMES}.{did_you_mean(prune, PRUNES)}")
    if isinstance(prune, type) or not isinstance(prune, Prune):
        raise ArgumentError(f"prune is {prune!r}; give one of {_NAMES}.")
    return prune
