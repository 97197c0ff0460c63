"""What the networks trained on real data say about sections 3.3, 3.4 and A.7 of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpe.compare.statistics import Interval, mean
from fpe.metrics import relative_improvement
from fpe_reproduction.experiments.comparisons import (
    AXIS,
    Cells,
    Network,
    accuracy_lines,
    accuracy_table,
    by_data,
    difference_lines,
    difference_table,
    improvement_table,
    overall_claim,
    width_claims,
)
from fpe_reproduction.experiments.findings import Claim, Findings, Line, Lines, Table, sign_claim
from fpe_reproduction.experiments.labels import LABELS

#: Kinds are called comparable if the interval of their difference lies within so many points; one is at
#: least as good as another if the interval lies above minus that.
COMPARABLE = 1.0


def vision(networks: list[Network], quick: bool) -> Findings:
    """Compare dense, gram-split and random-split networks over widths (figure 5)."""
    found = Findings()
    kinds = ("dense", "gram", "random")
    for cells in by_data(networks):
        smallest = cells.widths("dense")[:2]
        found.claims += width_claims(cells, "random", "dense", True, "random-split is above dense", smallest)
        found.claims += width_claims(cells, "gram", "dense", True, "gram-split is above dense", smallest)
        found.claims += [
            overall_claim(cells, "random", "dense", True, "random-split is above dense across widths"),
            overall_claim(cells, "gram", "dense", True, "gram-split is above dense across widths"),
            _comparable(cells, "gram", "random", "gram-split is only comparable to random-split"),
            sign_claim(
                "the relative improvement is most pronounced where neurons are few",
                f"{cells.data}, slope of random-split for each doubling of the width",
                cells.trend("random"),
                False,
                100,
                " % of relative improvement",
            ),
        ]
        found.tables.append(accuracy_table(cells, (*kinds, "restart", "shared", "columns"), LABELS))
        pairs = [("random", "dense"), ("gram", "dense"), ("gram", "random"), ("restart", "dense")]
        found.tables.append(difference_table(cells, pairs, LABELS))
        found.tables.append(improvement_table(cells, ("gram", "random"), LABELS))
        found.figures.append(accuracy_lines(cells, kinds))
        found.figures.append(difference_lines(cells, ("gram", "random", "restart"), "dense", "dense"))
    return found


def _comparable(cells: Cells, kind: str, other: str, paper: str) -> Claim:
    interval = cells.overall(kind, other)
    inside = max(abs(interval.low), abs(interval.high)) * 100 < COMPARABLE
    text = f"{cells.data}, mean over widths: {interval.text(100, digits=2)} points"
    return Claim(paper, text, bool(inside))


def equivalent(networks: list[Network], quick: bool) -> Findings:
    """Weigh random-split networks against dense ones of more parameters (figure 6a)."""
    found = Findings()
    for cells in by_data(networks, ("dense", "random")):
        rows = []
        points: dict[float, list[float]] = {}
        widths = cells.widths("random")
        for hidden in widths:
            ratio, each = _equivalent(cells, hidden)
            points[hidden] = each
            random = mean(cells.values(hidden, "random"))
            nonzero = next(iter(cells.networks[hidden]["random"].values()))["nonzero"]
            rows.append(
                [
                    f"{hidden}",
                    f"{nonzero:,}",
                    random.text(100, sign=False),
                    f"{ratio * nonzero:,.0f}",
                    mean(each).text(1, 2, sign=False),
                ]
            )
            found.claims.append(
                Claim(
                    "a dense network needs over 1.2 times the parameters to match",
                    f"{cells.data}, {hidden} neurons: {mean(each).text(1, 2, sign=False)} times",
                    mean(each).low > 1.2,
                )
            )
        heads = ["neurons", "non-zeros", "random-split %", "dense parameters to match", "times [95 %]"]
        found.tables.append(Table(f"{cells.data}, parameters of a dense network that matches", heads, rows))
        found.tables.append(accuracy_table(cells, ("dense", "random"), LABELS))
        found.figures.append(accuracy_lines(cells, ("dense", "random")))
        lines = [Line.of("random", points)]
        found.figures.append(
            Lines(f"{cells.data}: parameters to match", AXIS, "dense / expanded parameters", lines, 1.2)
        )
    return found


def _equivalent(cells: Cells, hidden: int) -> tuple[float, list[float]]:
    """Return how many times the parameters a dense network needs, for the means and for each trial.

    A trial is weighed against the dense networks of its own seed: their curve, made monotone, is linear
    between its widths; beyond its end the ratio is that of its end.
    """
    widths = cells.widths("dense")
    counts = [next(iter(cells.networks[h]["dense"].values()))["nonzero"] for h in widths]
    own = next(iter(cells.networks[hidden]["random"].values()))["nonzero"]

    def ratio(curve: Sequence[float], accuracy: float) -> float:
        rising = np.maximum.accumulate(curve)
        return float(np.interp(accuracy, rising, counts) / own)

    means = [float(np.mean(cells.values(h, "dense"))) for h in widths]
    trials = cells.networks[hidden]["random"]
    curves = {t: [cells.networks[h]["dense"][t]["accuracy"] for h in widths] for t in trials}
    each = [ratio(curves[t], network["accuracy"]) for t, network in trials.items()]
    return ratio(means, float(np.mean(cells.values(hidden, "random")))), each


#: Kinds of figure 6b by the share of the training that lies before the split.
TIMES = {
    "random-at-0": 0.0,
    "random-at-10": 0.1,
    "random-at-25": 0.25,
    "random": 0.5,
    "random-at-75": 0.75,
    "random-at-90": 0.9,
}


def timing(networks: list[Network], quick: bool) -> Findings:
    """Relate accuracy to when the network is split (figure 6b)."""
    found = Findings()
    for cells in by_data(networks, ("dense", *TIMES)):
        found.claims += [
            overall_claim(
                cells, "random-at-10", "random-at-90", True, "an early split is better than a late one"
            ),
            overall_claim(cells, "random-at-10", "random", True, "a split at 10 % is better than at 50 %"),
            overall_claim(cells, "random-at-90", "dense", True, "even the latest split is above dense"),
        ]
        found.claims += [
            _not_below(cells, hidden, "random-at-10", "random-at-90", "early is at least as good as late")
            for hidden in cells.widths("random-at-10", "random-at-90")
        ]
        found.tables.append(accuracy_table(cells, ("dense", *TIMES), LABELS))
        late = [(kind, "random-at-90") for kind in ("random-at-0", "random-at-10", "random")]
        found.tables.append(difference_table(cells, late, LABELS))
        lines = [
            Line.of(
                f"width-{hidden}",
                {
                    100 * at: [100 * v for v in cells.differences(hidden, kind, "dense")]
                    for kind, at in TIMES.items()
                },
            )
            for hidden in cells.widths("dense", *TIMES)
        ]
        x, y = "share of the training before the split, %", "points above dense"
        found.figures.append(Lines(f"{cells.data}: when to split", x, y, lines, 0.0, scale="linear"))
    return found


def _not_below(cells: Cells, hidden: int, kind: str, other: str, paper: str) -> Claim:
    interval = cells.difference(hidden, kind, other)
    text = f"{cells.data}, {hidden} neurons: {interval.text(100)} points"
    return Claim(paper, text, interval.low * 100 > -COMPARABLE)


def interference(networks: list[Network], quick: bool) -> Findings:
    """Compare the cosine similarity of neurons at two factors with dense (figure 6c)."""
    found = Findings()
    kinds = ("dense", "random", "random-x4")
    for cells in by_data(networks, kinds):
        for kind in kinds[1:]:
            for hidden in cells.widths(kind, "dense"):
                found.claims.append(
                    sign_claim(
                        f"{LABELS[kind]} neurons are less alike than dense ones",
                        f"{cells.data}, {hidden} neurons",
                        cells.difference(hidden, kind, "dense", "cosine"),
                        False,
                        1,
                        "",
                        digits=3,
                    )
                )
        for measure, label in (("cosine", "mean cosine similarity"), ("capacity", "feature capacity")):
            rows = [
                [f"{h}", *(mean(cells.values(h, k, measure)).text(digits=3, sign=False) for k in kinds)]
                for h in cells.widths(*kinds)
            ]
            heads = ["neurons", *(LABELS[k] for k in kinds)]
            found.tables.append(Table(f"{cells.data}, {label} of the first layer, mean [95 %]", heads, rows))
            lines = [
                Line.of(kind, {h: cells.values(h, kind, measure) for h in cells.widths(kind)})
                for kind in kinds
            ]
            level = 0.0 if measure == "cosine" else None
            found.figures.append(Lines(f"{cells.data}: {label}", AXIS, label, lines, level))
    return found


def factor(networks: list[Network], quick: bool) -> Findings:
    """Compare expansion factors (figure 6d)."""
    found = Findings()
    kinds = ("restart", "random", "random-x3", "random-x4", "random-x8")
    columns = ("columns", "columns-x3", "columns-x4")
    for cells in by_data(networks):
        smallest = cells.widths("dense")[0]
        for kind in kinds[1:]:
            found.claims += width_claims(
                cells, kind, "dense", True, "every factor gains where the network is small", [smallest]
            )
        found.claims.append(
            sign_claim(
                "differences between factors diminish as width grows",
                f"{cells.data}, spread over the factors at the largest width less that at the smallest",
                _spread_change(cells, kinds[1:]),
                False,
                100,
                " points",
            )
        )
        found.tables.append(accuracy_table(cells, ("dense", *kinds), LABELS))
        found.tables.append(accuracy_table(cells, ("shared", *columns), LABELS))
        found.figures.append(difference_lines(cells, kinds, "dense", "dense"))
        found.figures.append(difference_lines(cells, columns, "dense", "dense", ", whole columns"))
    return found


def _spread_change(cells: Cells, kinds: Sequence[str]) -> Interval:
    """Return how much the range over the kinds changes from the smallest width to the largest."""
    widths = cells.widths("dense", *kinds)

    def spreads(hidden: int) -> list[float]:
        rows = zip(*(cells.values(hidden, kind) for kind in kinds), strict=True)
        return [max(row) - min(row) for row in rows]

    ends = zip(spreads(widths[-1]), spreads(widths[0]), strict=True)
    return mean([last - first for last, first in ends])


#: Table A3: relative improvement in per cent by layers and hidden neurons.
PAPER_DEPTH = {
    5: {4: 28.0, 8: 2.6, 12: 0.4, 16: 0.2},
    7: {4: 34.0, 8: 11.0, 12: 1.1, 16: 0.8},
    9: {4: 104.0, 8: 8.7, 12: 2.0, 16: 1.4},
}


def depth(networks: list[Network], quick: bool) -> Findings:
    """Compare deep networks, dense and expanded (table A3)."""
    found = Findings()
    for name in dict.fromkeys(n["data"] for n in networks):
        lines = []
        for layers in sorted({n["layers"] for n in networks}):
            deep = layers + 1
            cells = Cells.of(name, [n for n in networks if n["data"] == name and n["layers"] == layers])
            widths = cells.widths("dense", "random")
            few, many = (mean(cells.improvements(h, "random")) for h in (widths[0], widths[-1]))
            pairs = zip(
                cells.improvements(widths[0], "random"), cells.improvements(widths[-1], "random"), strict=True
            )
            found.claims.append(
                sign_claim(
                    f"with {deep} layers, {widths[0]} neurons gain relatively more than {widths[-1]}",
                    f"{name}: {few.text(100)} % against {many.text(100)} %; difference",
                    mean([a - b for a, b in pairs]),
                    True,
                    100,
                    " %",
                )
            )
            rows = [_depth_row(cells, hidden, deep) for hidden in widths]
            heads = [*DEPTH_HEADS, "paper's, %"]
            found.tables.append(Table(f"{name}, {deep} layers, mean [95 %]", heads, rows))
            points = {h: [100 * v for v in cells.differences(h, "random", "dense")] for h in widths}
            lines.append(Line.of(f"depth-{deep}", {float(h): v for h, v in points.items()}))
        found.figures.append(
            Lines(f"{name}: random-split above dense", AXIS, "points above dense", lines, 0.0)
        )
    return found


def _depth_row(cells: Cells, hidden: int, deep: int) -> list[str]:
    made = cells.networks[hidden]
    means = [float(np.mean(cells.values(hidden, kind))) for kind in ("random", "dense")]
    paper = PAPER_DEPTH.get(deep, {}).get(hidden)
    return [
        f"{hidden}",
        f"{next(iter(made['dense'].values()))['nonzero']:,}",
        mean(cells.values(hidden, "dense")).text(100, sign=False),
        mean(cells.values(hidden, "random")).text(100, sign=False),
        cells.difference(hidden, "random", "dense").text(100),
        mean(cells.improvements(hidden, "random")).text(100),
        f"{100 * relative_improvement(*means):+.1f}",
        "–" if paper is None else f"{paper:+g}",
    ]


#: Of a table whose rows `_depth_row` makes, but for the last column.
DEPTH_HEADS = (
    "neurons",
    "non-zeros",
    "dense %",
    "random-split %",
    "points",
    "relative %",
    "of the means",
)

#: Table A4: dense and expanded accuracy in per cent by hidden neurons.
PAPER_IMAGENET = {
    6: (13.0, 13.9), 8: (23.8, 25.1), 10: (30.6, 31.9), 12: (38.1, 38.8), 14: (42.9, 43.6), 16: (46.9, 47.0),
}  # fmt: skip


def imagenet(networks: list[Network], quick: bool) -> Findings:
    """Compare networks of five layers on many classes (table A4)."""
    found = Findings()
    for cells in by_data(networks):
        widths = cells.widths("dense", "random")
        found.claims += width_claims(cells, "random", "dense", True, "expanded is above dense at every width")
        rows = []
        for hidden in widths:
            dense, expanded = PAPER_IMAGENET.get(hidden, (None, None))
            paper = "–" if dense is None else f"{dense} → {expanded}"
            rows.append([*_depth_row(cells, hidden, 0)[:-1], paper])
        heads = [*DEPTH_HEADS, "paper's, ImageNet"]
        found.tables.append(Table(f"{cells.data}, five layers, mean [95 %]", heads, rows))
        found.figures += [
            accuracy_lines(cells, ("dense", "random")),
            difference_lines(cells, ("random",), "dense", "dense"),
        ]
    return found


#: Gain of moving masks over one-shot random by dense neurons, in points (A.7).
PAPER_DYNAMIC = {4: 4.5, 8: 1.9, 16: 0.5}


def dynamic(networks: list[Network], quick: bool) -> Findings:
    """Compare masks that move at random with fixed ones (A.7)."""
    found = Findings()
    moving = ("rewired-5", "rewired-10", "rewired-20", "rewired-30")
    for cells in by_data(networks, ("dense", "random", *moving)):
        for hidden in cells.widths("random", *moving):
            best = max(moving, key=lambda k: cells.difference(hidden, k, "random").value)
            paper = (
                f"+{PAPER_DYNAMIC[hidden]} % over one-shot random"
                if hidden in PAPER_DYNAMIC
                else "better than one-shot random"
            )
            interval = cells.difference(hidden, best, "random")
            text = f"{cells.data}, {hidden} neurons, best with {LABELS[best]}: {interval.text(100)} points"
            size = PAPER_DYNAMIC.get(hidden)
            in_size = None if size is None else interval.includes(size / 100)
            found.claims.append(Claim(f"moving masks: {paper}", text, interval.above_zero, in_size))
        found.tables.append(accuracy_table(cells, ("dense", "random", *moving), LABELS))
        found.tables.append(difference_table(cells, [(kind, "random") for kind in moving], LABELS))
        found.figures.append(difference_lines(cells, moving, "random", "one-shot random"))
    return found


def two_four(networks: list[Network], quick: bool) -> Findings:
    """Compare the 2:4 pattern with random splitting (table A5)."""
    found = Findings()
    for cells in by_data(networks, ("dense", "two-four", "random")):
        found.claims += [
            _comparable(cells, "two-four", "random", "2:4 is within a point of random (−0.25 points)"),
            overall_claim(cells, "two-four", "dense", True, "2:4 is above dense (+7.78 points)", size=7.78),
        ]
        found.tables.append(accuracy_table(cells, ("dense", "two-four", "random"), LABELS))
        pairs = [("two-four", "dense"), ("random", "dense"), ("two-four", "random")]
        found.tables.append(difference_table(cells, pairs, LABELS))
        found.figures.append(difference_lines(cells, ("two-four", "random"), "dense", "dense"))
    return found
