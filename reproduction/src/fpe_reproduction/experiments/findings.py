"""What trained networks show: one long table of networks, and the claims, tables and figures made of it.

All are *findings*, plain dicts as they are stored: a claim has ``agrees``, a table ``columns``, a figure
``type``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fpe_reproduction.experiments.networks import label
from fpe_reproduction.statistics import Interval, holm, mean, slope

Finding = dict[str, Any]
#: What distinguishes networks of one data set.
KEYS = ["hidden", "clauses", "neurons", "layers", "network", "features", "kind", "trial"]
AXIS = "hidden neurons of the dense network"
#: Scale, digits and unit in which differences of a measure are printed, if they are no points of accuracy.
POINTS = (100.0, 1, " points")
UNITS = {"gain": (100.0, 1, " % of relative improvement"), "cosine": (1.0, 3, "")}


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

    def counts(self, kind: str) -> pd.Series:
        """Return the non-zeros of a kind at each width."""
        return self.frame[self.frame["kind"] == kind].groupby(self.axis)["nonzero"].first()

    def slope(self, kind: str) -> Interval:
        """Return the slope of the relative improvement over doublings of the axis, over trials."""
        rows = [row.dropna() for _, row in self.values(kind, "gain").iterrows()]
        return mean([slope(np.log2(row.index.to_numpy(float)), row) for row in rows])


def each(values: pd.DataFrame) -> dict[int, Interval]:
    """Return mean and interval over the trials at each width."""
    return {width: mean(values[width]) for width in values}


def texts(values: pd.DataFrame, *form: Any, **forms: Any) -> dict[int, str]:
    """Return mean and interval at each width as text; `form` as for `Interval.text`."""
    return {width: interval.text(*form, **forms) for width, interval in each(values).items()}


def overall(values: pd.DataFrame) -> Interval:
    """Return the mean over all widths; each trial counts once."""
    return mean(values.mean(axis=1))


def judged(
    paper: str,
    ours: str,
    intervals: Iterable[Interval],
    low: float = 0.0,
    high: float = math.inf,
    size: float | None = None,
    weak: bool = False,
) -> Finding:
    """Return a claim, and what follows of its intervals for it.

    It agrees if all intervals lie between `low` and `high`, and is contradicted if one of them lies wholly
    outside. A `weak` claim agrees unless it is contradicted. `size` is that of the paper, if it gives one.
    ``p`` is how likely such a measurement is if the claim is false, ``p_false`` if it is true, and
    ``detectable`` the smallest difference that it would have shown four times in five.
    """
    intervals = list(intervals)
    inside = all(low < i.low and i.high < high for i in intervals)
    outside = any(i.high < low or i.low > high for i in intervals)
    claim = {
        "paper": paper,
        "ours": ours,
        "agrees": not outside if weak else inside,
        "in_size": None if size is None else intervals[0].low <= size <= intervals[0].high,
        "contradicted": outside,
    }
    if intervals:
        claim["p"] = max(max(i.p_below(low), i.p_above(high)) for i in intervals)
        wrong = min(min(i.p_above(low), i.p_below(high)) for i in intervals)
        claim["p_false"] = min(1.0, len(intervals) * wrong)
        claim["detectable"] = max(i.detectable for i in intervals)
        claim["weak"] = weak
    return claim


def without_p(claim: Finding) -> Finding:
    """Return a claim whose verdict does not follow from one interval, so that `corrected` leaves it."""
    return {key: value for key, value in claim.items() if key not in ("p", "p_false")}


#: One-sided, as the intervals of 95 % are on each side.
LEVEL = 0.025


def corrected(claims: Sequence[Finding]) -> list[Finding]:
    """Return claims whose verdicts hold for all of them together, by Holm's method; see `judged`.

    Those that were judged in another way than by intervals stay.
    """
    found = [dict(claim) for claim in claims]
    family = [claim for claim in found if "p" in claim]
    right, wrong = (holm([claim[key] for claim in family]) for key in ("p", "p_false"))
    for claim, p, p_false in zip(family, right, wrong, strict=True):
        claim |= {"p": p, "p_false": p_false, "contradicted": p_false < LEVEL}
        claim["agrees"] = not claim["contradicted"] if claim["weak"] else p < LEVEL
    return found


def verdict(claim: Mapping[str, Any]) -> str:
    """Return the verdict on a claim: "agrees", "in sign only", "contradicted" or "not shown".

    A claim agrees if its intervals lie wholly on the stated side and, where the paper gives a size, include
    it; it is contradicted if one lies wholly on the other side.
    """
    if claim["agrees"]:
        return "in sign only" if claim.get("in_size") is False else "agrees"
    return "contradicted" if claim.get("contradicted") else "not shown"


def claims(
    results: Results,
    text: str,
    kind: str,
    other: str = "dense",
    at: str | int = "each",
    low: float = 0.0,
    high: float = math.inf,
    size: float | None = None,
    measure: str = "accuracy",
    digits: int | None = None,
    weak: bool = False,
) -> Iterator[Finding]:
    """Judge a statement about the difference of two kinds of networks, if both were trained.

    Parameters
    ----------
    results : Results
        The networks.
    text, kind, other : str
        The statement, and the networks that are compared.
    at : str or int
        "each": a claim at each width; a number: at the first few. "every": one claim, which must hold at
        every width. "mean": over the widths; "count": the same, with the widths at which the difference is
        clear. "slope": of the relative improvement of `kind` over doublings of the width.
    low, high, size : float
        Between which the difference must lie, and that of the paper, in the unit that is printed.
    measure, digits
        What is compared, and the digits of the numbers.
    weak : bool
        Whether the statement holds unless it is contradicted.
    """
    if not results.widths(kind, other):
        return
    scale, usual_digits, unit = UNITS.get("gain" if at == "slope" else measure, POINTS)
    form = scale, digits or usual_digits
    values = results.differences(kind, other, measure)
    found, in_all = each(values), overall(values)
    if at == "slope":
        rise = results.slope(kind)
        what = f"slope of {label(kind)} for each doubling of the width"
        shown = {f", {what}: {rise.text(*form)}{unit}": [rise]}
    elif at == "mean":
        shown = {f", mean over widths: {in_all.text(*form)}{unit}": [in_all]}
    elif at == "every":
        numbers = ", ".join(f"{i.text(*form)} at {width}" for width, i in found.items())
        shown = {f", points by neurons: {numbers}": list(found.values())}
    elif at == "count":
        up, down = (
            ", ".join(str(width) for width, i in found.items() if sign * i.value > 0 and i.low * i.high > 0)
            or "no width"
            for sign in (1, -1)
        )
        numbers = f"clearly above at {up}, clearly below at {down}, of {', '.join(map(str, found))}"
        shown = {f": {numbers}; mean over widths {in_all.text(scale, 2)} points": [in_all]}
    else:
        widths = results.widths("dense")[:at] if isinstance(at, int) else list(found)
        shown = {f", {w} neurons: {found[w].text(*form)}{unit}": [found[w]] for w in widths if w in found}
    bounds = low / scale, high / scale, None if size is None else size / scale, weak
    for ours, intervals in shown.items():
        yield judged(text, results.name + ours, intervals, *bounds)


def above(results: Results, kind: str, other: str, text: str = "", **how: Any) -> Iterator[Finding]:
    """Claim that a kind is above another; by default this is a further question ("asked")."""
    return claims(results, text or f"asked: {label(kind)} is above {label(other)}", kind, other, **how)


def comparable(results: Results, kind: str, other: str, text: str) -> Iterator[Finding]:
    """Claim that two kinds differ by less than a point in the mean over widths."""
    return claims(results, text, kind, other, "mean", -1.0, 1.0, digits=2)


def close(results: Results, kind: str, other: str, note: str = "") -> Iterator[Finding]:
    """Claim that a kind loses less than half a point against another at every width."""
    text = f"asked: {label(kind)} is within 0.5 points of {label(other)} at every width, or above{note}"
    return claims(results, text, kind, other, "every", -0.5, digits=2)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Finding:
    """Return rows of text under heads."""
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def by_width(
    title: str, columns: Sequence[tuple[str, Mapping[int, str]]], head: str = "neurons", scale: int = 1
) -> Finding:
    """Return a table with a row for each width, times `scale`, of columns of a head and texts by width."""
    widths = sorted(set().union(*(texts for _, texts in columns)))
    rows = [[f"{scale * w:g}", *(texts.get(w, "–") for _, texts in columns)] for w in widths]
    return table(title, [head, *(name for name, _ in columns)], rows)


def accuracies(results: Results, kinds: Sequence[str], note: str = "") -> Finding:
    """Return a table of accuracies in per cent: a row for each width, a column for each kind."""
    own = results.frame[results.frame["kind"].isin(kinds)]
    counts = own.groupby(results.axis)["nonzero"].agg(["min", "max"]).iterrows()
    columns = [("non-zeros", {w: " – ".join(f"{n:,}" for n in dict.fromkeys(ends)) for w, ends in counts})]
    columns += [
        (f"{label(kind)} %", texts(results.values(kind), 100, sign=False))
        for kind in kinds
        if results.widths(kind)
    ]
    trials = results.frame.groupby([results.axis, "kind"]).size().max()
    return by_width(f"{results.name}{note}, test accuracy, mean [95 %] of {trials} seeds", columns)


def differences(results: Results, pairs: Iterable[tuple[str, str]], note: str = "") -> Finding:
    """Return a table of paired differences in points: a row for each width, a column for each pair."""
    columns = [
        (f"{label(kind)} − {label(other)}", texts(results.differences(kind, other), 100, 2))
        for kind, other in pairs
        if results.widths(kind, other)
    ]
    return by_width(f"{results.name}{note}, paired differences in points, mean [95 %]", columns)


def by_kind(
    results: Results, kinds: Sequence[str], other: str | None, title: str, head: str = "", digits: int = 1
) -> Finding:
    """Return a table with a row for each kind and a column for each width.

    It has differences from `other` in points, and their mean over widths; without `other` accuracies in per
    cent.
    """
    widths, rows = results.widths(other or kinds[0]), []
    for kind in kinds:
        if kind == other or not results.widths(kind):
            continue
        values = results.differences(kind, other) if other else results.values(kind)
        own = texts(values, 100, digits, sign=bool(other))
        in_all = [overall(values).text(100, digits)] if other else []
        rows.append([label(kind), *(own.get(w, "–") for w in widths), *in_all])
    heads = [head, *(f"{w} neurons" for w in widths), *(["mean over widths"] if other else [])]
    return table(f"{results.name}{title}", heads, rows)


def line(kind: str, points: Mapping[Any, Iterable[float]] | pd.DataFrame) -> Finding:
    """Return a line of means with their intervals; `points` has the values of the trials by x."""
    found = {x: mean(values) for x, values in points.items()}
    return {
        "kind": kind,
        "x": [int(x) if x == int(x) else float(x) for x in found],
        "means": [i.value for i in found.values()],
        "low": [i.low for i in found.values()],
        "high": [i.high for i in found.values()],
    }


def lines(
    title: str, x: str, y: str, drawn: Iterable[Finding], level: float | None = None, scale: str = "log"
) -> Finding:
    """Return a figure of lines with bands; `level` marks no change, `scale` is that of the x axis."""
    figure = {"type": "lines", "title": title, "x": x, "y": y, "lines": list(drawn)}
    return {**figure, "level": level, "scale": scale}


def curves(
    results: Results, kinds: Iterable[str], other: str = "", note: str = "", name: str = ""
) -> Finding:
    """Return a figure over the widths, called `name`: accuracies, or differences from another kind."""
    title, y, level = "test accuracy", "test accuracy, %", None
    if other:
        name = name or label(other)
        title, y, level = f"above {name}", f"points above {name}", 0.0
    drawn = [
        line(kind, 100 * (results.differences(kind, other) if other else results.values(kind)))
        for kind in kinds
        if results.widths(kind, other or kind)
    ]
    return lines(f"{results.name}{note}: {title}", AXIS, y, drawn, level)


def compared(
    results: Results,
    kinds: Sequence[str],
    pairs: Iterable[tuple[str, str]],
    drawn: Iterable[str],
    other: str = "dense",
    note: str = "",
    name: str = "",
) -> Iterator[Finding]:
    """Yield the accuracies of kinds, the differences of pairs, and the curves of what is `drawn`."""
    yield accuracies(results, kinds, note)
    yield differences(results, pairs, note)
    yield curves(results, drawn, other, note, name)


def sorted_findings(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Put claims, tables and figures apart, each in its order."""
    found: dict[str, list[Finding]] = {"claims": [], "tables": [], "figures": []}
    for finding in findings:
        section = "claims" if "agrees" in finding else "figures" if "type" in finding else "tables"
        found[section].append(finding)
    return found
