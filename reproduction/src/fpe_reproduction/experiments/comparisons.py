"""Accuracies of many kinds of networks over widths, and their paired differences, as tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fpe.compare.statistics import Interval, mean, slope
from fpe.metrics import relative_improvement
from fpe_reproduction.experiments.findings import Claim, Line, Lines, Table, sign_claim

#: One trained network, as `run_networks` returns it, with the name of its data.
Network = dict[str, Any]

AXIS = "hidden neurons of the dense network"


@dataclass(frozen=True)
class Cells:
    """Networks of one data set by width, kind and trial.

    Attributes
    ----------
    data : str
        The data set's name.
    networks : dict
        ``networks[hidden][kind][trial]``.
    """

    data: str
    networks: dict[int, dict[str, dict[int, Network]]]

    @classmethod
    def of(cls, data: str, networks: Iterable[Network]) -> Cells:
        """Put networks in their places."""
        cells: dict[int, dict[str, dict[int, Network]]] = {}
        for network in sorted(networks, key=lambda n: (n["hidden"], n["trial"])):
            kinds = cells.setdefault(network["hidden"], {})
            kinds.setdefault(network["kind"], {})[network["trial"]] = network
        return cls(data, cells)

    def widths(self, *kinds: str) -> list[int]:
        """Return the widths at which there are networks of all these kinds."""
        return [h for h, made in self.networks.items() if all(kind in made for kind in kinds)]

    def values(self, hidden: int, kind: str, measure: str = "accuracy") -> list[float]:
        """Return a measure of each trial."""
        return [network[measure] for network in self.networks[hidden][kind].values()]

    def differences(
        self, hidden: int, kind: str, other: str, measure: str = "accuracy", of_other: str | None = None
    ) -> list[float]:
        """Return ``kind − other`` for each trial that has both."""
        first, second = self.networks[hidden][kind], self.networks[hidden][other]
        return [
            first[t][measure] - second[t][of_other or measure] for t in sorted(first.keys() & second.keys())
        ]

    def difference(self, hidden: int, kind: str, other: str, measure: str = "accuracy") -> Interval:
        """Return the mean paired difference with its interval."""
        return mean(self.differences(hidden, kind, other, measure))

    def overall(self, kind: str, other: str, measure: str = "accuracy") -> Interval:
        """Return the mean difference over all widths; each trial's mean over the widths counts once."""
        trials: dict[int, list[float]] = {}
        for hidden in self.widths(kind, other):
            first, second = self.networks[hidden][kind], self.networks[hidden][other]
            for t in first.keys() & second.keys():
                trials.setdefault(t, []).append(first[t][measure] - second[t][measure])
        return mean([sum(v) / len(v) for _, v in sorted(trials.items())])

    def improvements(self, hidden: int, kind: str) -> list[float]:
        """Return the relative improvement on dense of each trial."""
        first, dense = self.networks[hidden][kind], self.networks[hidden]["dense"]
        return [
            relative_improvement(first[t]["accuracy"], dense[t]["accuracy"])
            for t in sorted(first.keys() & dense.keys())
        ]

    def trend(self, kind: str) -> Interval:
        """Return the slope of the relative improvement over doublings of the width, over trials."""
        from math import log2

        widths = self.widths(kind, "dense")
        rows = [self.improvements(hidden, kind) for hidden in widths]
        return mean([slope([log2(h) for h in widths], list(row)) for row in zip(*rows, strict=True)])


def by_data(networks: Iterable[Network], kinds: Sequence[str] | None = None) -> list[Cells]:
    """Put the networks of each data set in their places, those of some kinds only if they are given."""
    names: dict[str, list[Network]] = {}
    for network in networks:
        if kinds is None or network["kind"] in kinds:
            names.setdefault(network["data"], []).append(network)
    return [Cells.of(name, own) for name, own in names.items()]


def accuracy_table(
    cells: Cells, kinds: Sequence[str], labels: dict[str, str], measure: str = "accuracy", note: str = ""
) -> Table:
    """Lay the accuracies of all kinds out over the widths, in per cent."""
    rows = []
    for hidden, made in cells.networks.items():
        present = [kind for kind in kinds if kind in made]
        if not present:
            continue
        counts = sorted({n["nonzero"] for kind in present for n in made[kind].values()})
        texts = [
            mean(cells.values(hidden, kind, measure)).text(100, sign=False) if kind in made else "–"
            for kind in kinds
        ]
        rows.append([f"{hidden}", _counts(counts), *texts])
    trials = max(len(made) for kinds_of in cells.networks.values() for made in kinds_of.values())
    heads = ["neurons", "non-zeros", *(f"{labels[k]} %" for k in kinds)]
    return Table(f"{cells.data}{note}, test accuracy, mean [95 %] of {trials} seeds", heads, rows)


def _counts(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} – {counts[-1]:,}"


def difference_table(
    cells: Cells, pairs: Sequence[tuple[str, str]], labels: dict[str, str], note: str = ""
) -> Table:
    """Lay paired differences out over the widths, in points."""
    rows = [
        [
            f"{hidden}",
            *(
                cells.difference(hidden, a, b).text(100, digits=2) if a in made and b in made else "–"
                for a, b in pairs
            ),
        ]
        for hidden, made in cells.networks.items()
        if any(a in made and b in made for a, b in pairs)
    ]
    heads = ["neurons", *(f"{labels[a]} − {labels[b]}" for a, b in pairs)]
    return Table(f"{cells.data}{note}, paired differences in points, mean [95 %]", heads, rows)


def improvement_table(cells: Cells, kinds: Sequence[str], labels: dict[str, str]) -> Table:
    """Lay relative improvements on dense out over the widths, in per cent of the dense accuracy."""
    rows = [
        [f"{hidden}", *(mean(cells.improvements(hidden, kind)).text(100) for kind in kinds)]
        for hidden in cells.widths("dense", *kinds)
    ]
    heads = ["neurons", *(f"{labels[kind]}, relative %" for kind in kinds)]
    return Table(f"{cells.data}, relative improvement on dense, mean [95 %]", heads, rows)


def accuracy_lines(cells: Cells, kinds: Sequence[str], note: str = "") -> Lines:
    """Draw the accuracies of all kinds over the widths."""
    lines = [
        Line.of(kind, {h: [100 * v for v in cells.values(h, kind)] for h in cells.widths(kind)})
        for kind in kinds
        if cells.widths(kind)
    ]
    return Lines(f"{cells.data}{note}: test accuracy", AXIS, "test accuracy, %", lines)


def difference_lines(cells: Cells, kinds: Sequence[str], other: str, label: str, note: str = "") -> Lines:
    """Draw the paired differences of all kinds from another over the widths."""
    lines = [
        Line.of(
            kind,
            {h: [100 * v for v in cells.differences(h, kind, other)] for h in cells.widths(kind, other)},
        )
        for kind in kinds
        if cells.widths(kind, other)
    ]
    return Lines(f"{cells.data}{note}: above {label}", AXIS, f"points above {label}", lines, 0.0)


def width_claims(
    cells: Cells, kind: str, other: str, up: bool, paper: str, widths: Sequence[int] | None = None
) -> list[Claim]:
    """Compare two kinds at each width; each comparison is a claim of its own."""
    return [
        sign_claim(
            paper,
            f"{cells.data}, {hidden} neurons",
            cells.difference(hidden, kind, other),
            up,
            100,
            " points",
        )
        for hidden in cells.widths(kind, other)
        if widths is None or hidden in widths
    ]


def overall_claim(
    cells: Cells, kind: str, other: str, up: bool, paper: str, size: float | None = None
) -> Claim:
    """Compare two kinds over all widths at once; `size` is the paper's difference, in points."""
    what = f"{cells.data}, mean over widths"
    return sign_claim(paper, what, cells.overall(kind, other), up, 100, " points", size=size)


def count_claim(cells: Cells, kind: str, other: str, paper: str) -> Claim:
    """Say at which widths a kind is above another, and at which below; it agrees if it is so on the mean."""
    widths = cells.widths(kind, other)
    found = {hidden: cells.difference(hidden, kind, other) for hidden in widths}
    above = [str(h) for h, interval in found.items() if interval.above_zero]
    below = [str(h) for h, interval in found.items() if interval.below_zero]
    text = (
        f"{cells.data}: clearly above at {', '.join(above) or 'no width'}, clearly below at "
        f"{', '.join(below) or 'no width'}, of {', '.join(map(str, widths))}; mean over widths "
        f"{cells.overall(kind, other).text(100, digits=2)} points"
    )
    return Claim(paper, text, cells.overall(kind, other).above_zero)
