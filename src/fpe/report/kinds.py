"""Names and colours of what is compared, the same in every figure."""

from __future__ import annotations

LABELS = {
    "dense": "dense",
    "clause": "clause-split",
    "random": "random-split",
    "formula": "exact formula",
}
COLOURS = {"dense": "#6b6b6b", "clause": "#1f6f8b", "random": "#d1495b", "formula": "#222222"}
