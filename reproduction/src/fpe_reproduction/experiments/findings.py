"""What trained networks show: one long table of networks, declared claims, tables and figures.

Whatever is shown is a callable that gets `Results` and returns *findings*, plain dicts as they are stored: a
claim has ``agrees``, a table ``columns``, a figure ``type``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fpe_reproduction.experiments.networks import label
from fpe_reproduction.statistics import Interval, mean, slope

Finding = dict[str, Any]
#: What distinguishes networks of one data set.
KEYS = ["hidden", "clauses", "neurons", "layers", "network", "features", "kind", "trial"]
AXIS = "hidden neurons of the dense network"
#: Scale, digits and unit in which differences of a measure are printed.
UNITS: dict[str, tuple[float, int, str]] = {
    "accuracy": (100, 1, " points"),
    "accuracy_int8": (100, 1, " points"),
    "accuracy_int4": (100, 1, " points"),
    "gain": (100, 1, " % of relative improvement"),
    "cosine": (1, 3, ""),
}


@dataclass(frozen=True)
class Results:
    """Trained networks of one data set, a row each."""

    name: str  # the data set's
    # Their records, with ``gain``, the improvement relative to the dense network of the same trial.
    frame: pd.DataFrame
    axis: str = "hidden"  # the column over which they are compared
    quick: bool = False  # whether the run was a quick one

    @classmethod
    def of(
        cls, name: str, records: Iterable[Mapping[str, Any]], axis: str = "hidden", quick: bool = False
    ) -> Results:
        """Put records into a table; of two with the same keys, the later one counts."""
        frame = pd.DataFrame(list(records))
        keys = [key for key in KEYS if key in frame and (key != "neurons" or "hidden" not in frame)]
        frame = frame.drop_duplicates(keys, keep="last")
        own = [key for key in keys if key != "kind"]
        dense = frame[frame["kind"] == "dense"].set_index(own)["accuracy"].rename("dense_accuracy")
        frame = frame.merge(dense.reset_index(), how="left", on=own)
        parent = frame["dense_accuracy"].where(frame["dense_accuracy"] != 0)
        frame["gain"] = (frame["accuracy"] - parent) / parent
        return cls(name, frame, axis, quick)

    @classmethod
    def by_data(cls, records: Sequence[Mapping[str, Any]], quick: bool = False) -> list[Results]:
        """Return the results of each data set, in the order in which these occur."""
        names = dict.fromkeys(record["data"] for record in records)
        return [cls.of(name, [r for r in records if r["data"] == name], quick=quick) for name in names]

    def where(self, axis: str | None = None, **values: Any) -> Results:
        """Return the networks that have these values, perhaps compared over another axis."""
        chosen = self.frame
        for column, value in values.items():
            chosen = chosen[chosen[column].isin(value if isinstance(value, tuple) else (value,))]
        return dataclasses.replace(self, frame=chosen, axis=axis or self.axis)

    def values(self, kind: str, measure: str = "accuracy") -> pd.DataFrame:
        """Return a measure, trials × widths."""
        own = self.frame[self.frame["kind"] == kind]
        return own.pivot(index="trial", columns=self.axis, values=measure)

    def differences(self, kind: str, other: str, measure: str = "accuracy") -> pd.DataFrame:
        """Return ``kind − other`` of the trials and widths that have both, trials × widths."""
        difference = self.values(kind, measure) - self.values(other, measure)
        return difference.dropna(how="all").dropna(how="all", axis=1)

    def widths(self, *kinds: str) -> list[int]:
        """Return the widths at which there are networks of all these kinds."""
        sets = [set(self.frame.loc[self.frame["kind"] == kind, self.axis]) for kind in kinds]
        return sorted(set.intersection(*sets))

    def slope(self, kind: str) -> Interval:
        """Return the slope of the relative improvement over doublings of the axis, over trials."""
        gains = self.values(kind, "gain")
        return mean(
            [
                slope([math.log2(x) for x in row.dropna().index], list(row.dropna()))
                for _, row in gains.iterrows()
            ]
        )


def each(values: pd.DataFrame) -> dict[int, Interval]:
    """Return mean and interval over the trials at each width."""
    return {width: mean(values[width].dropna().tolist()) for width in values.columns}


def overall(values: pd.DataFrame) -> Interval:
    """Return the mean over all widths; each trial counts once."""
    return mean([float(sum(own) / len(own)) for own in (row.dropna() for _, row in values.iterrows())])


def judged(
    paper: str,
    ours: str,
    intervals: Sequence[Interval],
    low: float = 0.0,
    high: float = math.inf,
    size: float | None = None,
    weak: bool = False,
) -> Finding:
    """Return a claim, and what follows of its intervals for it.

    It agrees if all intervals lie between `low` and `high`, and is contradicted if one of them lies wholly
    outside. A `weak` claim agrees unless it is contradicted. `size` is that of the paper, if it gives one.
    """
    inside = all(low < i.low and i.high < high for i in intervals)
    outside = any(i.high < low or i.low > high for i in intervals)
    return {
        "paper": paper,
        "ours": ours,
        "agrees": not outside if weak else inside,
        "in_size": None if size is None else intervals[0].includes(size),
        "contradicted": outside,
    }


def verdict(claim: Mapping[str, Any]) -> str:
    """Return the verdict on a claim: "agrees", "in sign only", "contradicted" or "not shown".

    A claim agrees if its intervals lie wholly on the stated side and, where the paper gives a size, include it;
    it is contradicted if one lies wholly on the other side.
    """
    if claim["agrees"]:
        return "in sign only" if claim.get("in_size") is False else "agrees"
    return "contradicted" if claim.get("contradicted") else "not shown"


@dataclass(frozen=True)
class Claim:
    """A statement about the difference of two kinds of networks."""

    text: str  # the statement
    kind: str  # the networks that are compared
    other: str = "dense"
    # "each": a claim at each width, or at the first few; "mean": over the widths; "every": one
    # claim, which must hold at every width; "count": as "mean", with the widths at which the difference
    # is clear; "slope": of the relative improvement of `kind` over doublings of the width.
    at: str | int = "each"
    low: float = 0.0  # between which the difference must lie, in the unit that is printed
    high: float = math.inf
    size: float | None = None  # the difference that the paper gives
    measure: str = "accuracy"  # one of `UNITS`
    digits: int | None = None  # of the numbers
    weak: bool = False  # whether it holds unless it is contradicted

    def __call__(self, results: Results) -> list[Finding]:
        """Judge the statement; there is nothing to say if one of the kinds was not trained."""
        if not results.widths(self.kind, self.other):
            return []
        scale, digits, unit = UNITS[self.measure if self.at != "slope" else "gain"]
        digits = self.digits or digits
        size = None if self.size is None else self.size / scale

        def judge(what: str, *intervals: Interval, ours: str = "") -> Finding:
            ours = ours or f"{intervals[0].text(scale, digits)}{unit}"
            text = f"{results.name}, {what}: {ours}"
            return judged(self.text, text, intervals, self.low / scale, self.high / scale, size, self.weak)

        if self.at == "slope":
            what = f"slope of {label(self.kind)} for each doubling of the width"
            return [judge(what, results.slope(self.kind))]
        differences = results.differences(self.kind, self.other, self.measure)
        found, all_widths = each(differences), overall(differences)
        if self.at == "mean":
            return [judge("mean over widths", all_widths)]
        if self.at == "every":
            text = ", ".join(f"{i.text(scale, digits)} at {width}" for width, i in found.items())
            return [judge("points by neurons", *found.values(), ours=text)]
        if self.at == "count":
            above, below = (
                ", ".join(str(w) for w, i in found.items() if (i.above_zero if up else i.below_zero))
                or "no width"
                for up in (True, False)
            )
            text = f"{results.name}: clearly above at {above}, clearly below at {below}, of "
            text += f"{', '.join(map(str, found))}; mean over widths {all_widths.text(scale, 2)} points"
            return [judged(self.text, text, [all_widths])]
        chosen = results.widths("dense")[: self.at] if isinstance(self.at, int) else list(found)
        return [judge(f"{width} neurons", found[width]) for width in chosen if width in found]


def above(kind: str, other: str, text: str = "", **how: Any) -> Claim:
    """Claim that a kind is above another; by default this is a further question ("asked")."""
    return Claim(text or f"asked: {label(kind)} is above {label(other)}", kind, other, **how)


def comparable(kind: str, other: str, text: str) -> Claim:
    """Claim that two kinds differ by less than a point in the mean over widths."""
    return Claim(text, kind, other, "mean", -1.0, 1.0, digits=2)


def close(kind: str, other: str, note: str = "") -> Claim:
    """Claim that a kind loses less than half a point against another at every width."""
    text = f"asked: {label(kind)} is within 0.5 points of {label(other)} at every width, or above{note}"
    return Claim(text, kind, other, "every", -0.5, digits=2)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Finding:
    """Return rows of text under heads."""
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


@dataclass(frozen=True)
class Accuracies:
    """A table of accuracies in per cent: a row for each width, a column for each kind."""

    kinds: Sequence[str]
    note: str = ""

    def __call__(self, results: Results) -> list[Finding]:
        """Return the table."""
        found = {kind: each(results.values(kind)) for kind in self.kinds if results.widths(kind)}
        own = results.frame[results.frame["kind"].isin(self.kinds)]
        rows = []
        for width, networks in own.groupby(results.axis):
            low, high = networks["nonzero"].min(), networks["nonzero"].max()
            count = f"{low:,}" if low == high else f"{low:,} – {high:,}"
            texts = [f[width].text(100, sign=False) if width in f else "–" for f in found.values()]
            rows.append([f"{width}", count, *texts])
        trials = results.frame.groupby([results.axis, "kind"]).size().max()
        heads = ["neurons", "non-zeros", *(f"{label(kind)} %" for kind in found)]
        return [
            table(f"{results.name}{self.note}, test accuracy, mean [95 %] of {trials} seeds", heads, rows)
        ]


@dataclass(frozen=True)
class Differences:
    """A table of paired differences in points: a row for each width, a column for each pair."""

    pairs: Sequence[tuple[str, str]]
    note: str = ""

    def __call__(self, results: Results) -> list[Finding]:
        """Return the table."""
        found = {pair: each(results.differences(*pair)) for pair in self.pairs if results.widths(*pair)}
        rows = [
            [f"{width}", *(f[width].text(100, digits=2) if width in f else "–" for f in found.values())]
            for width in sorted(set().union(*found.values()))
        ]
        heads = ["neurons", *(f"{label(a)} − {label(b)}" for a, b in found)]
        return [table(f"{results.name}{self.note}, paired differences in points, mean [95 %]", heads, rows)]


@dataclass(frozen=True)
class ByKind:
    """A table with a row for each kind and a column for each width: differences, or accuracies in per cent."""

    kinds: Sequence[str]
    other: str | None
    title: str
    head: str = ""
    digits: int = 1

    def __call__(self, results: Results) -> list[Finding]:
        """Return the table."""
        widths = results.widths(self.other or self.kinds[0])
        rows = []
        for kind in self.kinds:
            if kind == self.other or not results.widths(kind):
                continue
            values = results.differences(kind, self.other) if self.other else results.values(kind)
            texts = {w: i.text(100, self.digits, sign=bool(self.other)) for w, i in each(values).items()}
            mean_text = [overall(values).text(100, self.digits)] if self.other else []
            rows.append([label(kind), *(texts.get(w, "–") for w in widths), *mean_text])
        heads = [self.head, *(f"{w} neurons" for w in widths), *(["mean over widths"] if self.other else [])]
        trials = len(results.values(self.kinds[0]))
        return [table(f"{results.name}{self.title.format(trials=trials)}", heads, rows)]


def line(kind: str, points: Mapping[Any, Iterable[float]] | pd.DataFrame) -> Finding:
    """Return a line of means with their intervals; `points` has the values of the trials by x."""
    found = {x: mean([float(v) for v in values if v == v]) for x, values in points.items()}
    return {
        "kind": kind,
        "x": [int(x) if x == int(x) else float(x) for x in found],
        "means": [i.value for i in found.values()],
        "low": [i.low for i in found.values()],
        "high": [i.high for i in found.values()],
    }


def lines(
    title: str, x: str, y: str, drawn: Sequence[Finding], level: float | None = None, scale: str = "log"
) -> Finding:
    """Return a figure of lines with bands; `level` marks no change, `scale` is that of the x axis."""
    return {
        "type": "lines",
        "title": title,
        "x": x,
        "y": y,
        "lines": list(drawn),
        "level": level,
        "scale": scale,
    }


@dataclass(frozen=True)
class Curves:
    """A figure over the widths: of accuracies, or of the differences from another kind."""

    kinds: Sequence[str]
    other: str = ""
    note: str = ""
    other_label: str = ""

    def __call__(self, results: Results) -> list[Finding]:
        """Return the figure."""
        if not self.other:
            drawn = [line(k, 100 * results.values(k)) for k in self.kinds if results.widths(k)]
            title = f"{results.name}{self.note}: test accuracy"
            return [lines(title, AXIS, "test accuracy, %", drawn)]
        present = [kind for kind in self.kinds if results.widths(kind, self.other)]
        drawn = [line(kind, 100 * results.differences(kind, self.other)) for kind in present]
        name = self.other_label or label(self.other)
        return [lines(f"{results.name}{self.note}: above {name}", AXIS, f"points above {name}", drawn, 0.0)]


#: What shows something of results: a claim, a table, a figure, or a function of its own.
Show = Callable[[Results], Iterable[Finding]]


def sorted_findings(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Put claims, tables and figures apart, each in its order."""
    found: dict[str, list[Finding]] = {"claims": [], "tables": [], "figures": []}
    for finding in findings:
        section = "claims" if "agrees" in finding else "figures" if "type" in finding else "tables"
        found[section].append(finding)
    return found
