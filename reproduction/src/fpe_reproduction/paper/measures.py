"""What the networks of one data set show: estimates with intervals, by what they are of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fpe_reproduction.experiments.findings import Results, each, overall
from fpe_reproduction.experiments.networks import REWIRED
from fpe_reproduction.statistics import Interval, jackknife, mean, proportion, slope
from fpe_reproduction.theory import CoverageModel, Estimate, simulate

WIDTHS = (4, 8, 16, 32)
SPLIT = {"clause": "split by clauses", "random": "split at random"}
#: Estimates by what they are of.
Estimates = Mapping[str, Interval]
#: What compares networks of one data set.
Measure = Callable[[Results], Estimates]


def neurons(results: Results) -> Results:
    """Return the networks of 8 clauses, compared over the numbers of neurons."""
    return _whole(results.where("neurons", clauses=8))


def clauses(results: Results) -> Results:
    """Return the networks of 8 neurons, compared over the numbers of clauses."""
    return _whole(results.where("clauses", neurons=8))


def _whole(results: Results) -> Results:
    """Return a sweep all of whose trials have networks at every place of the axis.

    Places that other experiments added, with fewer trials than most have, are left out.
    """
    frame = results.frame
    trials = frame.groupby(results.axis)["trial"].nunique()
    frame = frame[frame[results.axis].isin(trials.index[trials >= trials.median()])]
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


def gain(kind: str, widths: tuple[int, ...] = (), layers: int = 1) -> Measure:
    """Return the relative improvement on the dense network at each width, or at some.

    It is that of the mean accuracies, with an interval by the jackknife over trials: the ratio of a trial
    whose dense network has learned nothing says nothing.
    """

    def estimate(results: Results) -> Estimates:
        own = shallow(results) if layers == 1 else results.where("hidden", layers=layers)
        found = {}
        for width in own.widths(kind, "dense"):
            if not widths or width in widths:
                both = [own.values(each)[width] for each in (kind, "dense")]
                found[f"{width:g} neurons"] = ratio(*both)
        return found

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


def regression(measure: str, fold: bool, within: bool = False) -> Measure:
    """Return the slope of the relative improvement over the change of a measure.

    `within` a width: of both, the mean of the width is subtracted first.
    """

    def estimate(results: Results) -> Estimates:
        own, found = neurons(results), {}
        dense = own.values("dense", measure)
        for kind in ("clause", "random"):
            values = own.values(kind, measure)
            change = values / dense if fold else values - dense
            gained = own.values(kind, "gain").loc[change.index]
            found[SPLIT[kind]] = _slope(change.to_numpy(), gained.to_numpy(), within)
        return found

    return estimate


def _slope(x: np.ndarray, y: np.ndarray, within: bool) -> Interval:
    """Return the slope of y over x, both (trials, widths)."""

    def estimate(trials: np.ndarray) -> float:
        own = (each[trials] - (each[trials].mean(axis=0) if within else 0) for each in (x, y))
        return slope(*(each.ravel() for each in own))

    return jackknife(estimate, len(x))


def needed(widths: tuple[int, ...] = ()) -> Measure:
    """Return how many times the parameters a dense network needs to match one that is split at random."""

    def estimate(results: Results) -> Estimates:
        own = one_layer(results).where(kind=("dense", "random"))
        dense, random = own.values("dense"), shallow(results).values("random")
        counts = own.counts("dense")

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


#: Formulas that are simulated: clauses, literals, neurons, factor.
SIMULATED = (
    (3, 4, 8, 2), (8, 4, 8, 2), (16, 4, 8, 2), (32, 4, 8, 2), (8, 2, 8, 2), (8, 2, 8, 4), (8, 3, 16, 2),
    (8, 4, 48, 2), (32, 4, 64, 2),
)  # fmt: skip
#: The chance to miss a clause that section A.5's condition on the number of neurons allows.
MISSED = 0.1


@functools.cache
def _simulated(model: CoverageModel, quick: bool) -> dict[str, Estimate]:
    return simulate(model, 2_000 if quick else 20_000, seed=0)


def _setting(numbers: Sequence[int]) -> str:
    return "C, k, H, α = " + ", ".join(map(str, numbers))


def _normal(value: float, error: float) -> Interval:
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def simulated(name: str, expected: str, fewest: int = 0) -> Measure:
    """Return by how much simulated networks of at least `fewest` inputs differ from a formula, relatively."""

    def estimate(results: Results) -> Estimates:
        found = {}
        for numbers in SIMULATED:
            model = CoverageModel(*numbers)
            formula = getattr(model, expected)
            if model.inputs >= fewest and formula:
                own = _simulated(model, results.quick)[name]
                found[_setting(numbers)] = _normal(own.mean / formula - 1, own.error / formula)
        return found

    return estimate


def missing(results: Results) -> Estimates:
    """Return by how much simulated networks miss a clause more often than a union bound below 1 allows."""
    found = {}
    for numbers in SIMULATED:
        model = CoverageModel(*numbers)
        if model.missed_bound < 1:
            own = _simulated(model, results.quick)["missed"]
            found[_setting(numbers)] = _normal(own.mean - model.missed_bound, own.error)
    return found


def enough(results: Results) -> Estimates:
    """Return how often simulated networks cover all clauses that have as many neurons as A.5 asks for."""
    found = {}
    for numbers in SIMULATED:
        model = CoverageModel(*numbers)
        if model.factor * model.neurons >= math.log(model.clauses / MISSED) / model.coverage:
            own = _simulated(model, results.quick)["missed"]
            found[_setting(numbers)] = _normal(1 - own.mean, own.error)
    return found


def covered(results: Results) -> Estimates:
    """Return the share of trained networks, split at random, whose neurons cover all clauses."""
    own = clauses(results)
    values = own.values("random", "covered_clauses")
    return {f"{count:g} clauses": proportion(values[count] == count) for count in values}
