"""What the networks say about splits: is any of them better than a random one?"""

from __future__ import annotations

from collections.abc import Sequence

from fpe.compare.statistics import mean
from fpe_reproduction.experiments.comparisons import (
    Cells,
    Network,
    by_data,
    difference_lines,
    overall_claim,
)
from fpe_reproduction.experiments.findings import Claim, Findings, Line, Lines, Table, sign_claim
from fpe_reproduction.experiments.labels import LABELS
from fpe_reproduction.experiments.tried import TRIED

ASKED = "asked"
#: Splits in one figure at most, so that their lines can be told apart.
IN_A_FIGURE = 5


def splits(networks: list[Network], quick: bool) -> Findings:
    """Compare every split that was tried with a random one of the same trial."""
    found = Findings()
    for cells in by_data(networks):
        for factor, x in ((2, ""), (4, "-x4")):
            other = f"random{x}"
            every = [f"{kind}{x}" for kind in ("gram", *TRIED)]
            kinds = [kind for kind in every if cells.widths(kind, other)]
            control = f"ahead{x}"
            note = f", α = {factor}"
            for kind in kinds:
                text = f"{ASKED}: {LABELS[kind]} is better than {LABELS[other]}"
                found.claims.append(overall_claim(cells, kind, other, True, text))
            text = f"{ASKED}: {LABELS[f'learned{x}']} is better than {LABELS[control]}"
            found.claims.append(overall_claim(cells, f"learned{x}", control, True, text))
            found.tables.append(split_table(cells, [*kinds, control], other, note))
            found.tables.append(split_accuracies(cells, ["dense", other, *kinds, control], note))
            for first in range(0, len(kinds), IN_A_FIGURE):
                some = kinds[first : first + IN_A_FIGURE]
                found.figures.append(difference_lines(cells, some, other, "random-split", note))
    return found


def split_table(cells: Cells, kinds: Sequence[str], other: str, note: str) -> Table:
    """Lay the differences from another kind out, a row for each kind, in points."""
    widths = cells.widths(other, *kinds)
    rows = [
        [
            LABELS[kind],
            *(cells.difference(hidden, kind, other).text(100, digits=2) for hidden in widths),
            cells.overall(kind, other).text(100, digits=2),
        ]
        for kind in kinds
    ]
    heads = ["split", *(f"{hidden} neurons" for hidden in widths), "mean over widths"]
    return Table(f"{cells.data}{note}, points above {LABELS[other]}, mean [95 %]", heads, rows)


def split_accuracies(cells: Cells, kinds: Sequence[str], note: str) -> Table:
    """Lay accuracies out, a row for each kind, in per cent."""
    widths = cells.widths(*kinds)
    rows = [
        [
            LABELS[kind],
            *(mean(cells.values(hidden, kind)).text(100, sign=False) for hidden in widths),
        ]
        for kind in kinds
    ]
    trials = len(cells.values(widths[0], kinds[0]))
    heads = ["network", *(f"{hidden} neurons" for hidden in widths)]
    return Table(f"{cells.data}{note}, test accuracy in %, mean [95 %] of {trials} seeds", heads, rows)


def clause_free(networks: Sequence[Network]) -> Findings:
    """Compare splits that are not told the formula with a random one and with that by clauses."""
    kinds = list(dict.fromkeys(n["kind"] for n in networks))
    made = {kind: {n["trial"]: n for n in networks if n["kind"] == kind} for kind in kinds}
    values = {kind: [100 * made[kind][t]["accuracy"] for t in sorted(made[kind])] for kind in kinds}
    found = Findings()
    rows = []
    for kind in kinds:
        above, below = (_difference(values[kind], values[other]) for other in ("random", "clause"))
        factor = len(made[kind][0]["weight"]) // made[kind][0]["neurons"]
        seen = mean([100 * factor * n["covering"] for n in made[kind].values()])
        rows.append(
            [
                LABELS[kind],
                mean(values[kind]).text(sign=False),
                "–" if kind == "random" else mean(above).text(),
                "–" if kind == "clause" else mean(below).text(),
                f"{seen.value:.0f}",
            ]
        )
        if kind not in ("dense", "clause", "random"):
            text = f"{ASKED}: {LABELS[kind]} is better than random, without being told the clauses"
            found.claims.append(_claim(text, above))
    heads = [
        "split",
        "test %",
        "above random",
        "above clauses",
        "clauses that a neuron's child sees whole, %",
    ]
    title = f"8 clauses, 8 dense neurons, α = 2, {len(values['dense'])} seeds, mean [95 %]"
    found.tables.append(Table(title, heads, rows))
    shown = ("clause", "random", "coactivation", "learned", "interactions")
    lines = [Line.of(k, {float(made[k][0]["neurons"]): values[k]}) for k in shown if k in values]
    found.figures.append(Lines("Test accuracy", "hidden neurons", "test accuracy, %", lines))
    return found


def _difference(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(values, others, strict=True)]


def _claim(text: str, differences: Sequence[float]) -> Claim:
    return sign_claim(text, "mean of the paired differences", mean(differences), True, 1, " points")
