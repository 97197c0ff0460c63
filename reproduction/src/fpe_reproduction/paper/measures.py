"""What the networks of one data set show: estimates with intervals, by what they are of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from fpe_reproduction.experiments.findings import Results, each, overall
from fpe_reproduction.experiments.networks import REWIRED
from fpe_reproduction.statistics import Interval, jackknife, mean, proportion, slope

WIDTHS = (4, 8, 16, 32)
#: The places of the two sweeps over Boolean formulas.
NEURONS, CLAUSES = (4, 6, 8, 12, 16, 24, 32), (3, 6, 8, 10, 15, 20, 25, 32)
#: Networks by when they were split, in per cent of the training.
TIMES = {10: "random-at-10", 25: "random-at-25", 50: "random", 75: "random-at-75", 90: "random-at-90"}
SPLIT = {"clause": "split by clauses", "random": "split at random"}
#: Estimates by what they are of.
Estimates = Mapping[str, Interval]
#: What compares networks of one data set.
Measure = Callable[[Results], Estimates]


def neurons(results: Results) -> Results:
    """Return the networks of 8 clauses, compared over the numbers of neurons."""
    return _whole(results.where("neurons", clauses=8, neurons=NEURONS))


def clauses(results: Results) -> Results:
    """Return the networks of 8 neurons, compared over the numbers of clauses."""
    return _whole(results.where("clauses", neurons=8, clauses=CLAUSES))


def _whole(results: Results) -> Results:
    """Return the trials that have networks at every place of the axis."""
    frame = results.frame
    places = frame.groupby("trial")[results.axis].nunique()
    frame = frame[frame["trial"].isin(places.index[places == frame[results.axis].nunique()])]
    return replace(results, frame=frame)


def case(results: Results) -> Results:
    """Return the networks of the case study."""
    return results.where("neurons", clauses=8, neurons=8)


def shallow(results: Results) -> Results:
    """Return the classifiers of one hidden layer at the paper's widths."""
    own = one_layer(results)
    return replace(own, frame=own.frame[own.frame["hidden"].isin(WIDTHS)])


def one_layer(results: Results) -> Results:
    """Return the classifiers of one hidden layer."""
    frame = results.frame
    for column, usual in (("layers", 1), ("features", None), ("network", None)):
        if column in frame:
            frame = frame[frame[column].isna() | (frame[column] == usual)]
    return replace(results, frame=frame, axis="hidden")


def at_each(
    kind: str,
    other: str = "dense",
    of: Callable[[Results], Results] = shallow,
    measure: str = "accuracy",
    widths: tuple[int, ...] = (),
) -> Measure:
    """Compare two kinds at each width, or at some."""

    def estimate(results: Results) -> Estimates:
        own = of(results)
        if not own.widths(kind, other):
            return {}
        found = each(own.differences(kind, other, measure))
        unit = {"clauses": "clauses"}.get(own.axis, "neurons")
        return {f"{w:g} {unit}": i for w, i in found.items() if not widths or w in widths}

    return estimate


def on_average(
    kind: str,
    other: str = "dense",
    of: Callable[[Results], Results] = shallow,
    measure: str = "accuracy",
) -> Measure:
    """Compare two kinds in the mean over widths."""

    def estimate(results: Results) -> Estimates:
        own = of(results)
        if not own.widths(kind, other):
            return {}
        values = own.differences(kind, other, measure)
        return {"mean" if len(values.columns) > 1 else "difference": overall(values)}

    return estimate


def gain(kind: str, width: int, layers: int = 1) -> Measure:
    """Return the relative improvement on the dense network at a width.

    It is that of the mean accuracies, with an interval by the jackknife over trials: the ratio of a trial
    whose dense network has learned nothing says nothing.
    """

    def estimate(results: Results) -> Estimates:
        own = one_layer(results) if layers == 1 else results.where("hidden", layers=layers)
        if width not in own.widths(kind, "dense"):
            return {}
        return {f"{width} neurons": ratio(*(own.values(each)[width] for each in (kind, "dense")))}

    return estimate


def ratio(values: pd.Series, others: pd.Series) -> Interval:
    """Return by how much one mean over trials is larger than another one, relatively."""
    pairs = pd.concat([values, others], axis=1).dropna().to_numpy()

    def improvement(trials: np.ndarray) -> float:
        own, other = pairs[trials].mean(axis=0)
        return float(own / other - 1)

    return jackknife(improvement, len(pairs))


def rise(
    kind: str,
    of: Callable[[Results], Results],
    choose: Callable[[list[float]], list[float]] = lambda widths: widths,
    measure: str = "accuracy",
) -> Measure:
    """Return the slope of the improvement relative to dense over doublings of the axis, or a part of it."""

    def estimate(results: Results) -> Estimates:
        own = of(results)
        if not own.widths(kind, "dense"):
            return {}
        dense = own.values("dense", measure)
        values = own.values(kind, measure) / dense.where(dense != 0)
        chosen = values[choose(list(values.columns))]
        rows = [row.dropna() for _, row in chosen.iterrows()]
        return {"each doubling": mean([slope(np.log2(r.index.to_numpy(float)), r) for r in rows])}

    return estimate


def share_of_trials(holds: Callable[[pd.DataFrame], pd.Series], of: Callable[[Results], Results]) -> Measure:
    """Return the share of networks of which something holds; a trial of several counts once.

    `holds` gets the accuracies, (trial and width) × kinds.
    """

    def estimate(results: Results) -> Estimates:
        own = of(results)
        wide = own.frame.pivot(index=["trial", own.axis], columns="kind", values="accuracy")
        shares = holds(wide).groupby("trial").agg(["mean", "size"])
        several = (shares["size"] > 1).any()
        return {"share": mean(shares["mean"]) if several else proportion(shares["mean"])}

    return estimate


def share_of_gap(measure: str) -> Measure:
    """Return by how much splitting at random changes a measure, over what splitting by clauses does."""

    def estimate(results: Results) -> Estimates:
        found = {}
        for name, of in (("8 clauses", neurons), ("8 neurons", clauses)):
            own = of(results)
            parts, wholes = (
                own.differences(kind, "dense", measure).mean(axis=1).to_numpy()
                for kind in ("random", "clause")
            )
            found[name] = _ratio(parts, wholes)
        return found

    return estimate


def share_of_masks(measure: str) -> Measure:
    """Return the share of the change of a measure that masks alone make, on dense networks' weights."""

    def estimate(results: Results) -> Estimates:
        own, found = neurons(results), {}
        dense = own.values("dense", measure)
        for kind, title in SPLIT.items():
            masked, trained = (
                (own.values(kind, name) - dense).mean(axis=1).to_numpy()
                for name in (f"{measure}_masked", measure)
            )
            found[title] = _ratio(masked, trained)
        return found

    return estimate


def earlier(results: Results) -> Estimates:
    """Compare each time of the split with the next one, in the mean over widths."""
    own = shallow(results)
    if not own.widths(*TIMES.values()):
        return {}
    return {
        f"{first} − {second} %": overall(own.differences(TIMES[first], TIMES[second]))
        for first, second in itertools.pairwise(TIMES)
    }


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> Interval:
    return jackknife(lambda trials: float(parts[trials].mean() / wholes[trials].mean()), len(parts))


def in_both(kind: str, measure: str) -> Measure:
    """Return the differences from the dense network in all settings of both sweeps."""

    def estimate(results: Results) -> Estimates:
        found = {
            **at_each(kind, of=neurons, measure=measure)(results),
            **at_each(kind, of=clauses, measure=measure)(results),
        }
        found.pop("8 clauses", None)  # the setting is in both: it is "8 neurons", too
        return found

    return estimate


def regression(measure: str, fold: bool, within: bool = False, how: Callable[..., float] = slope) -> Measure:
    """Return the slope of the relative improvement over the change of a measure, or what else relates them.

    `within` a width: of both, the mean of the width is subtracted first.
    """

    def estimate(results: Results) -> Estimates:
        own, found = neurons(results), {}
        dense = own.values("dense", measure)
        for kind, title in SPLIT.items():
            values = own.values(kind, measure)
            change = values / dense if fold else values - dense
            gained = own.values(kind, "gain").loc[change.index]
            found[title] = _relation(change.to_numpy(), gained.to_numpy(), within, how)
        return found

    return estimate


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation."""
    return float(np.corrcoef(x, y)[0, 1])


def _relation(x: np.ndarray, y: np.ndarray, within: bool, how: Callable[..., float]) -> Interval:
    """Return how y depends on x, both (trials, widths)."""

    def estimate(trials: np.ndarray) -> float:
        own = (each[trials] - (each[trials].mean(axis=0) if within else 0) for each in (x, y))
        return how(*(each.ravel() for each in own))

    return jackknife(estimate, len(x))


def needed(widths: tuple[int, ...] = ()) -> Measure:
    """Return how many times the parameters a dense network needs to match one that is split at random."""

    def estimate(results: Results) -> Estimates:
        own = one_layer(results).where(kind=("dense", "random"))
        dense = own.where(hidden=tuple(w for w in own.widths("dense") if w >= WIDTHS[0])).values("dense")
        random = shallow(results).values("random")
        counts = own.counts("dense")[dense.columns]

        def times(reached: pd.Series) -> np.ndarray:
            curve = np.maximum.accumulate(dense.loc[reached.name])
            return np.asarray(np.interp(reached, curve, counts) / counts[random.columns])

        found = each(random.apply(times, axis=1, result_type="broadcast"))
        return {f"{w:g} neurons": i for w, i in found.items() if not widths or w in widths}

    return estimate


def grid(kind: str, more: int, fewer: int) -> Measure:
    """Return how much larger the relative improvement is with more clauses, at 8 neurons and more."""

    def estimate(results: Results) -> Estimates:
        own = results.frame[(results.frame["kind"] == kind) & results.frame["neurons"].isin((8, 12, 16))]
        table = own.pivot(index=["neurons", "trial"], columns="clauses", values="gain")
        if not {more, fewer} <= set(table):
            return {}
        return {f"{more} against {fewer} clauses": mean((table[more] - table[fewer]).groupby("trial").mean())}

    return estimate


def of_features(features: int) -> Callable[[Results], Results]:
    """Return what chooses the classifiers of CNNs of some features."""
    return lambda results: results.where("hidden", features=features)


def best_rewired(width: int, other: str) -> Measure:
    """Compare the best share of rewired weights: every second trial chooses it for the others.

    The difference from the dense network is relative to it.
    """

    def estimate(results: Results) -> Estimates:
        own = shallow(results)
        if width not in own.widths("dense", "random", *REWIRED):
            return {}
        at = pd.DataFrame({kind: own.values(kind)[width] for kind in ("dense", "random", *REWIRED)})
        parts = [
            measured[chosen[list(REWIRED)].mean().idxmax()] / (measured["dense"] if other == "dense" else 1)
            - (1 if other == "dense" else measured[other])
            for chosen, measured in _halves(at)
        ]
        return {f"{width} neurons": mean(pd.concat(parts))}

    return estimate


def _halves(trials: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the trials of even and of odd number: those that choose, and those that are measured."""
    even, odd = (trials[trials.index % 2 == half] for half in (0, 1))
    return [(even, odd), (odd, even)]


def spread(results: Results) -> Estimates:
    """Return how much more the expansion factors differ at the largest width than at the smallest.

    Every second trial chooses the best and the worst factor of a width for the others: the largest of several
    differences is noise, too, which also fades.
    """
    own = shallow(results)
    kinds = ("random", "random-x3", "random-x4", "random-x8")
    widths = own.widths("dense", *kinds)
    if not widths:
        return {}

    def apart(width: int) -> pd.Series:
        values = pd.DataFrame({kind: own.values(kind)[width] for kind in kinds})
        return pd.concat(
            [
                measured[chosen.mean().idxmax()] - measured[chosen.mean().idxmin()]
                for chosen, measured in _halves(values)
            ]
        )

    return {"largest − smallest width": mean(apart(widths[-1]) - apart(widths[0]))}
