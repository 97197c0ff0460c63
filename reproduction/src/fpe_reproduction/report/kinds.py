"""Colours of what is compared, the same in every figure."""

from __future__ import annotations

from collections.abc import Sequence

_COLOURS = {
    "dense": "#6b6b6b",
    "clause": "#1f6f8b",
    "random": "#d1495b",
    "formula": "#222222",
    "gram": "#1f6f8b",
    "restart": "#b0b0b0",
    "columns": "#e6972b",
    "shared": "#8a6fb0",
    "columns-activation": "#2a9d6f",
    "columns-gradient": "#355c9a",
    "random-first": "#c45ab3",
    "columns-first": "#a0522d",
}
#: For kinds that meet only their own kin, in the order in which they come.
_OTHERS = ("#2a9d6f", "#8a6fb0", "#e6972b", "#1f6f8b", "#a0522d", "#c45ab3", "#5b7f2b", "#355c9a", "#111111")


def colours(kinds: Sequence[str]) -> dict[str, str]:
    """Give each kind of a figure its colour: its own, or its like's at α = 2, else one that is left."""
    given: dict[str, str] = {}
    for kind in kinds:
        colour = _COLOURS.get(kind) or _COLOURS.get(kind.partition("-x")[0])
        if colour is not None and colour not in given.values():
            given[kind] = colour
    left = iter([colour for colour in _OTHERS if colour not in given.values()])
    return {kind: given.get(kind) or next(left) for kind in kinds}
