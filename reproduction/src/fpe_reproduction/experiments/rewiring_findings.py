"""What networks with moving masks say: how near they come to a dense network of twice the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpe.compare.statistics import Interval, ratio_of_sums
from fpe_reproduction.experiments.comparisons import (
    Cells,
    Network,
    accuracy_lines,
    accuracy_table,
    by_data,
    difference_lines,
    difference_table,
    width_claims,
)
from fpe_reproduction.experiments.findings import Claim, Findings, Table
from fpe_reproduction.experiments.labels import LABELS
from fpe_reproduction.experiments.moving import MOVING, STARTS

ASKED = "asked"
#: What should be closed of the gap, in the mean over the widths.
ENOUGH = 0.9
#: Points within which networks that stay packable should be of those whose weights move freely.
CLOSE = 1.0
FEWER = tuple(f"fewer-{by}{x}" for by in ("variance", "random") for x in ("", "-x3", "-x4"))
#: The chosen setting, that of blocks for each data set and for others, and that which is packed as codes.
BEST = "moved"
PACKABLE = {"fashion-mnist": "moved-blocks-x6", "banking77": "moved-blocks"}
OTHERWISE = "moved-blocks"
CODED = "moved-kept"


def gap_closed(
    cells: Cells, kind: str, low: str = "dense", high: str = "dense-x2"
) -> tuple[dict[int, Interval], Interval]:
    """Return how much of the way from `low` to `high` a kind goes, at each width and in their mean."""
    widths = cells.widths(kind, low, high)
    parts = np.array([cells.differences(hidden, kind, low) for hidden in widths]).T
    wholes = np.array([cells.differences(hidden, high, low) for hidden in widths]).T
    each, overall = ratio_of_sums(parts, wholes)
    return dict(zip(widths, each, strict=True)), overall


def rewiring(networks: list[Network], quick: bool) -> Findings:
    """Compare networks whose masks move with dense ones of twice the count, and with all rivals."""
    found = Findings()
    for cells in by_data(networks):
        name = cells.data.removesuffix("-cosine")
        ours, packable = BEST, PACKABLE.get(name, OTHERWISE)
        for low, high, note in (("dense", "dense-x2", ""), ("steady", "steady-x2", ", dense at rate 0.003")):
            each, overall = gap_closed(cells, ours, low, high)
            text = ", ".join(f"{i.text(100, 0, False)} at {hidden}" for hidden, i in each.items())
            found.claims.append(
                Claim(
                    f"{ASKED}: {LABELS[ours]} closes at least {100 * ENOUGH:.0f} % of the gap to twice the "
                    f"parameters{note}",
                    f"{cells.data}, mean over widths {overall.text(100, 0, False)} % ({text})",
                    overall.low >= ENOUGH,
                )
            )
        for other in ("random", "still", "rigl", "rigl-erk"):
            text = f"{ASKED}: {LABELS[ours]} is above {LABELS[other]}"
            found.claims += width_claims(cells, ours, other, True, text)
        found.claims += [_above_best(cells, ours, hidden) for hidden in cells.widths(ours)]
        found.claims += [_close(cells, packable, ours), _close(cells, CODED, ours)]
        kinds = ("dense", "random", ours, packable, "dense-x2")
        moved = [kind for kind in cells.networks[cells.widths(ours)[0]] if kind in MOVING]
        found.tables += [
            _gaps(cells, [*moved, "random", *FEWER]),
            accuracy_table(cells, [*kinds[:2], *moved, *kinds[-1:], "steady", "steady-x2"], LABELS),
            accuracy_table(cells, FEWER, LABELS, note=", the plain rival"),
            difference_table(
                cells,
                [(ours, other) for other in ("random", "still", "rigl", "rigl-erk", packable, CODED)],
                LABELS,
            ),
        ]
        found.figures += [accuracy_lines(cells, kinds), difference_lines(cells, kinds[1:], "dense", "dense")]
    return found


def choices(networks: list[Network], quick: bool) -> Findings:
    """Compare all ways of moving masks with the chosen one, on held-out training data."""
    found = Findings()
    for cells in by_data(networks):
        ours = BEST
        widths = cells.widths(ours)
        others = [kind for kind in MOVING if kind != ours and cells.widths(kind)]
        free = [kind for kind in MOVING if "columns" not in kind and "blocks" not in kind]
        _, best = max((gap_closed(cells, kind)[1].value, kind) for kind in free)
        found.claims.append(
            Claim(
                f"{ASKED}: the chosen way of moving masks is the best of those tried, in gap closed",
                f"{cells.data}: {LABELS[ours]} {gap_closed(cells, ours)[1].text(100, 0, False)} %, best "
                f"{LABELS[best]} {gap_closed(cells, best)[1].text(100, 0, False)} %",
                best == ours,
            )
        )
        found.tables.append(_gaps(cells, [kind for kind in MOVING if cells.widths(kind)]))
        rows = [
            [
                LABELS[kind],
                *(cells.difference(hidden, kind, ours).text(100) for hidden in cells.widths(kind, "moved")),
                cells.overall(kind, ours).text(100),
            ]
            for kind in others
        ]
        heads = ["", *(f"{hidden} neurons" for hidden in widths), "mean over widths"]
        title = f"{cells.data}, points above {LABELS[ours]} (α = 4), mean [95 %]"
        found.tables.append(Table(title, heads, rows))
        starts = [(kind, "start-copied") for kind in STARTS if kind != "start-copied"]
        found.tables.append(difference_table(cells, [*starts, ("start-copied", "dense")], LABELS, ", starts"))
        found.figures.append(accuracy_lines(cells, ("dense", "rigl", ours, "dense-x2")))
    return found


def _gaps(cells: Cells, kinds: Sequence[str]) -> Table:
    """Lay out how much of the gap each kind closes, best first, in per cent."""
    made = [(LABELS[kind], *gap_closed(cells, kind)) for kind in kinds if cells.widths(kind)]
    made.sort(key=lambda row: -row[2].value)
    widths = cells.widths("dense", "dense-x2")
    rows = [
        [text, *(each[h].text(100, 0, False) if h in each else "–" for h in widths), all_.text(100, 0, False)]
        for text, each, all_ in made
    ]
    heads = ["", *(f"{hidden} neurons" for hidden in widths), "mean over widths"]
    return Table(f"{cells.data}, gap to twice the parameters closed, % [95 %]", heads, rows)


def _above_best(cells: Cells, ours: str, hidden: int) -> Claim:
    """Compare with the plain rival that is best at this width, by its test accuracy."""
    present = [kind for kind in FEWER if kind in cells.networks[hidden]]
    best = min(present, key=lambda kind: cells.difference(hidden, ours, kind).value)
    interval = cells.difference(hidden, ours, best)
    return Claim(
        f"{ASKED}: {LABELS[ours]} is above the best network that reads fewer inputs",
        f"{cells.data}, {hidden} neurons, {LABELS[best]}: {interval.text(100)} points",
        interval.above_zero,
    )


def _close(cells: Cells, packable: str, ours: str) -> Claim:
    widths = cells.widths(packable, ours)
    each = {hidden: cells.difference(hidden, packable, ours) for hidden in widths}
    text = ", ".join(f"{i.text(100)} at {hidden}" for hidden, i in each.items())
    return Claim(
        f"{ASKED}: {LABELS[packable]}, which stays packable, is within a point of {LABELS[ours]} at "
        "every width",
        f"{cells.data}, points by neurons: {text}; over all {cells.overall(packable, ours).text(100)}",
        all(100 * interval.low > -CLOSE for interval in each.values()),
    )
