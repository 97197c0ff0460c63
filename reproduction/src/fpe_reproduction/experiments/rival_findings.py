"""What the networks say beyond the paper's first edition: rivals, controls, and what readers asked for."""

from __future__ import annotations

from collections.abc import Sequence

from fpe.compare.statistics import mean
from fpe_reproduction.experiments.comparisons import (
    AXIS,
    Cells,
    Network,
    accuracy_lines,
    accuracy_table,
    by_data,
    count_claim,
    difference_lines,
    difference_table,
    overall_claim,
    width_claims,
)
from fpe_reproduction.experiments.findings import Claim, Findings, Line, Lines, Table, sign_claim
from fpe_reproduction.experiments.labels import LABELS

ASKED = "asked"


def cnn(networks: list[Network], quick: bool) -> Findings:
    """Compare CNNs with dense and expanded classifiers (later edition)."""
    found = Findings()
    kinds = ("dense", "random", "columns")
    for name in dict.fromkeys(n["data"] for n in networks):
        for features in sorted({n["features"] for n in networks}):
            own = [n for n in networks if n["data"] == name and n["features"] == features]
            cells, note = Cells.of(name, own), f", {features} features"
            found.claims += width_claims(
                cells, "random", "dense", True, f"the classifier gains, {features} features"
            )
            found.claims.append(
                sign_claim(
                    f"the gain is largest at the smallest width, {features} features",
                    f"{name}, slope of random-split for each doubling of the width",
                    cells.trend("random"),
                    False,
                    100,
                    " % of relative improvement",
                )
            )
            found.tables.append(accuracy_table(cells, kinds, LABELS, note=note))
            pairs = [("random", "dense"), ("columns", "dense")]
            found.tables.append(difference_table(cells, pairs, LABELS, note))
            found.figures.append(difference_lines(cells, kinds[1:], "dense", "dense", note))
    return found


def overlap(networks: list[Network], quick: bool) -> Findings:
    """Compare children with overlapping inputs with disjoint ones (later edition)."""
    found = Findings()
    pairs = [("overlap", "random"), ("overlap-x4", "random-x4")]
    for cells in by_data(networks):
        for kind, other in pairs:
            text = f"{LABELS[kind]} is below {LABELS[other]}"
            found.claims += width_claims(cells, kind, other, False, text)
            found.claims.append(overall_claim(cells, kind, other, False, text))
        kinds = ("dense", "random", "overlap", "random-x4", "overlap-x4")
        found.tables.append(accuracy_table(cells, kinds, LABELS))
        found.tables.append(difference_table(cells, [*pairs, ("overlap", "dense")], LABELS))
        found.figures.append(difference_lines(cells, kinds[1:], "dense", "dense"))
    return found


def dropconnect(networks: list[Network], quick: bool) -> Findings:
    """Compare DropConnect with dense and with random splitting (later edition)."""
    found = Findings()
    rates = ("dropconnect-10", "dropconnect-25", "dropconnect-50")
    for cells in by_data(networks, ("dense", "random", *rates)):
        for kind in rates:
            interval = cells.overall(kind, "dense")
            text = f"{cells.data}, {LABELS[kind]}, mean over widths: {interval.text(100, digits=2)} points"
            found.claims.append(
                Claim("DropConnect is equal to or worse than dense", text, not interval.above_zero)
            )
            found.claims.append(
                overall_claim(cells, "random", kind, True, f"random-split is above {LABELS[kind]}")
            )
        found.tables.append(accuracy_table(cells, ("dense", *rates, "random"), LABELS))
        found.tables.append(difference_table(cells, [(kind, "dense") for kind in rates], LABELS))
        found.figures.append(difference_lines(cells, (*rates, "random"), "dense", "dense"))
    return found


def from_scratch(networks: list[Network], quick: bool) -> Findings:
    """Compare expanded networks with the same masks trained from random weights."""
    found = Findings()
    for cells in by_data(networks, ("dense", "random", "scratch")):
        found.claims += width_claims(
            cells, "random", "scratch", True, f"{ASKED}: expanding a parent beats its masks from scratch"
        )
        found.claims.append(
            overall_claim(cells, "scratch", "dense", True, f"{ASKED}: masks from scratch are above dense")
        )
        found.tables.append(accuracy_table(cells, ("dense", "scratch", "random"), LABELS))
        pairs = [("random", "scratch"), ("scratch", "dense")]
        found.tables.append(difference_table(cells, pairs, LABELS))
        found.figures.append(difference_lines(cells, ("scratch", "random"), "dense", "dense"))
    return found


def fewer_inputs(networks: list[Network], quick: bool) -> Findings:
    """Compare expanded networks with dense ones that are as wide and read fewer inputs."""
    found = Findings()
    choices = ("variance", "random", "norm")
    for cells in by_data(networks):
        for factor, x in ((2, ""), (3, "-x3"), (4, "-x4")):
            ours = [kind for kind in (f"random{x}", f"columns{x}") if cells.widths(kind)]
            rivals = [f"fewer-{by}{x}" for by in choices if cells.widths(f"fewer-{by}{x}")]
            pairs = [(kind, rival) for kind in ours for rival in rivals]
            for kind, rival in pairs:
                text = f"{ASKED}: {LABELS[kind]} is above {LABELS[rival]}"
                found.claims.append(count_claim(cells, kind, rival, text))
            found.tables.append(accuracy_table(cells, ("dense", *ours, *rivals), LABELS))
            found.tables.append(difference_table(cells, pairs, LABELS))
            note = f", α = {factor}"
            found.figures.append(difference_lines(cells, (*ours, *rivals), "dense", "dense", note))
    return found


def wide(networks: list[Network], quick: bool) -> Findings:
    """Look for gains at large widths."""
    found = Findings()
    kinds = ("dense", "random", "columns", "fewer-variance")
    for cells in by_data(networks):
        found.claims += width_claims(cells, "random", "dense", True, f"{ASKED}: random-split is above dense")
        found.tables.append(accuracy_table(cells, kinds, LABELS))
        found.tables.append(
            difference_table(cells, [(k, "dense") for k in kinds[1:]] + [("random", kinds[3])], LABELS)
        )
        found.figures.append(difference_lines(cells, kinds[1:], "dense", "dense"))
    return found


def distil(networks: list[Network], quick: bool) -> Findings:
    """Compare learning from labels with learning from a teacher too."""
    found = Findings()
    kinds = ("dense", "distilled-dense", "random", "distilled-random", "columns", "distilled-columns")
    for cells in by_data(networks, kinds):
        for kind in ("random", "columns"):
            found.claims.append(
                overall_claim(
                    cells,
                    f"distilled-{kind}",
                    "distilled-dense",
                    True,
                    f"{ASKED}: with a teacher, {LABELS[kind]} is still above dense",
                )
            )
        found.claims.append(
            overall_claim(
                cells, "distilled-dense", "dense", True, f"{ASKED}: the teacher helps the dense network"
            )
        )
        found.claims.append(
            overall_claim(
                cells, "distilled-random", "random", True, f"{ASKED}: the teacher helps the expanded network"
            )
        )
        found.tables.append(accuracy_table(cells, kinds, LABELS))
        pairs = [
            ("distilled-dense", "dense"),
            ("distilled-random", "random"),
            ("distilled-random", "distilled-dense"),
            ("distilled-columns", "distilled-dense"),
        ]
        found.tables.append(difference_table(cells, pairs, LABELS))
        found.figures.append(accuracy_lines(cells, kinds))
    return found


def quantized(networks: list[Network], quick: bool) -> Findings:
    """Compare what rounding to few bits costs dense and expanded networks."""
    found = Findings()
    kinds = ("dense", "random", "columns")
    for cells in by_data(networks, kinds):
        for bits in (8, 4):
            measure = f"accuracy_int{bits}"
            found.claims.append(
                sign_claim(
                    f"{ASKED}: random-split stays above dense with {bits}-bit weights",
                    f"{cells.data}, mean over widths",
                    cells.overall("random", "dense", measure),
                    True,
                    100,
                    " points",
                )
            )
        found.tables.append(_rounding_table(cells, kinds))
        found.figures.append(_rounding_lines(cells, kinds, 8))
        found.figures.append(_rounding_lines(cells, kinds, 4))
    return found


def _lost(cells: Cells, hidden: int, kind: str, bits: int) -> list[float]:
    pairs = zip(cells.values(hidden, kind, f"accuracy_int{bits}"), cells.values(hidden, kind), strict=True)
    return [100 * (after - before) for after, before in pairs]


def _rounding_table(cells: Cells, kinds: Sequence[str]) -> Table:
    rows = []
    for hidden in cells.widths(*kinds):
        row = [f"{hidden}"]
        for kind in kinds:
            row.append(mean(cells.values(hidden, kind)).text(100, sign=False))
            row += [mean(_lost(cells, hidden, kind, bits)).text(1, 2) for bits in (8, 4)]
        rows.append(row)
    heads = ["neurons"]
    for kind in kinds:
        heads += [f"{LABELS[kind]} %", "8 bits, points", "4 bits, points"]
    return Table(f"{cells.data}, accuracy and what rounding the weights changes, mean [95 %]", heads, rows)


def _rounding_lines(cells: Cells, kinds: Sequence[str], bits: int) -> Lines:
    lines = [Line.of(kind, {h: _lost(cells, h, kind, bits) for h in cells.widths(kind)}) for kind in kinds]
    title = f"{cells.data}: what rounding the weights to {bits} bits changes"
    return Lines(title, AXIS, "points", lines, 0.0)
