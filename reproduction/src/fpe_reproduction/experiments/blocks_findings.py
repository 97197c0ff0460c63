"""What the networks say about layers that are whole blocks: what they cost, and which inputs should leave."""

from __future__ import annotations

from collections.abc import Sequence

from fpe_reproduction.experiments.comparisons import (
    Cells,
    Network,
    accuracy_table,
    difference_lines,
    difference_table,
    overall_claim,
)
from fpe_reproduction.experiments.findings import Claim, Findings
from fpe_reproduction.experiments.labels import LABELS

ASKED = "asked"
#: Whole columns are as good as the other way if they cost less than so many points, their interval included.
CLOSE = 0.5
RANKINGS = ("activation", "gradient")


def blocks(networks: list[Network], quick: bool) -> Findings:
    """Compare whole blocks, their inputs ranked in three ways, with one partition for each neuron."""
    found = Findings()
    for name in dict.fromkeys(n["data"] for n in networks):
        own = [n for n in networks if n["data"] == name]
        gated = [n for n in own if n.get("network") == "gated"]
        plain = [n for n in own if n.get("network") != "gated"]
        shallow = Cells.of(name, [n for n in plain if n["layers"] == 1])
        for factor, x in ((2, ""), (3, "-x3"), (4, "-x4")):
            _one_layer(found, shallow, factor, x)
        _deep(found, Cells.of(name, [n for n in plain if n["layers"] > 1]))
        _gated(found, Cells.of(name, gated))
    return found


def _one_layer(found: Findings, cells: Cells, factor: int, x: str) -> None:
    """Add what networks with one hidden layer say at one factor."""
    other, norm = f"random{x}", f"columns{x}"
    ranked = [f"columns-{by}{x}" for by in RANKINGS]
    for kind in (norm, *ranked):
        found.claims.append(close_claim(cells, kind, other))
    for by, kind in zip(RANKINGS, ranked, strict=True):
        text = f"{ASKED}: ranked by {by}, inputs leave better than by norm, α = {factor}"
        found.claims.append(overall_claim(cells, kind, norm, True, text))
    kinds = (f"shared{x}", norm, *ranked)
    note = f", α = {factor}"
    found.tables.append(accuracy_table(cells, ("dense", other, *kinds), LABELS, note=note))
    pairs = [*((kind, other) for kind in kinds), (norm, kinds[0]), *((kind, norm) for kind in ranked)]
    found.tables.append(difference_table(cells, pairs, LABELS, note))
    found.figures.append(difference_lines(cells, kinds, other, "random-split", note))


def _deep(found: Findings, cells: Cells) -> None:
    """Add what deep networks say, in which columns can pay in the first layer only."""
    kinds = ("random", "random-first", "columns-first")
    note = ", 5 layers"
    why = f"{note} (the later layers are square: what their columns hold would not pay for their copies)"
    found.claims.append(close_claim(cells, "columns-first", "random-first", note))
    text = f"{ASKED}: expanding every second layer beats expanding the first alone{note}"
    found.claims.append(overall_claim(cells, "random", "random-first", True, text))
    found.tables.append(accuracy_table(cells, ("dense", *kinds), LABELS, note=why))
    pairs = [("columns-first", "random-first"), ("random-first", "random"), ("columns-first", "dense")]
    found.tables.append(difference_table(cells, pairs, LABELS, note))
    found.figures.append(difference_lines(cells, kinds, "dense", "dense", note))


def _gated(found: Findings, cells: Cells) -> None:
    """Add what gated networks say, whose gate and up lose the same inputs."""
    kinds = ("shared", "columns", "columns-activation")
    note = ", gated"
    for kind in kinds[1:]:
        found.claims.append(close_claim(cells, kind, "random", note))
    text = f"{ASKED}: ranked by activation, inputs leave better than by norm{note}"
    found.claims.append(overall_claim(cells, "columns-activation", "columns", True, text))
    found.tables.append(accuracy_table(cells, ("dense", "random", *kinds), LABELS, note=note))
    pairs = [*((kind, "random") for kind in kinds), ("columns-activation", "columns"), ("columns", "dense")]
    found.tables.append(difference_table(cells, pairs, LABELS, note))
    found.figures.append(difference_lines(cells, ("random", *kinds), "dense", "dense", note))


def close_claim(cells: Cells, kind: str, other: str, note: str = "") -> Claim:
    """State that a kind costs less than `CLOSE` points against another, or none, at every width.

    It agrees if the lower end of every width's interval is above ``-CLOSE``.
    """
    widths: Sequence[int] = cells.widths(kind, other)
    found = {hidden: cells.difference(hidden, kind, other) for hidden in widths}
    each = ", ".join(f"{i.text(100, digits=2)} at {hidden}" for hidden, i in found.items())
    text = (
        f"{ASKED}: {LABELS[kind]} is within {CLOSE} points of {LABELS[other]} at every width, or above{note}"
    )
    agrees = all(100 * interval.low > -CLOSE for interval in found.values())
    return Claim(text, f"{cells.data}, points by neurons: {each}", agrees)
