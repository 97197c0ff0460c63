"""The experiments on Boolean formulas (sections 3.1, 3.2, A.5 and A.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fpe_reproduction.experiments.boolean import KINDS
from fpe_reproduction.experiments.experiment import experiment
from fpe_reproduction.experiments.findings import (
    Finding,
    Results,
    by_width,
    each,
    judged,
    line,
    lines,
    table,
    texts,
    without_p,
)
from fpe_reproduction.experiments.networks import label
from fpe_reproduction.experiments.splits import SPLITS
from fpe_reproduction.experiments.tasks import Rows
from fpe_reproduction.statistics import Interval, mean, slope_over_trials
from fpe_reproduction.theory import CoverageModel, simulate

#: Accuracies of the case study, in per cent (3.1).
PAPER_CASE_STUDY = {"dense": 78.7, "clause": 99.4, "random": 88.7}
EXPANDED = ("clause", "random")
AXES = {"neurons": "hidden neurons of the dense network", "clauses": "clauses"}
#: What is simulated: clauses, literals, neurons, factor.
SIMULATED = (
    (3, 4, 8, 2), (8, 4, 8, 2), (16, 4, 8, 2), (32, 4, 8, 2), (8, 3, 8, 2), (8, 2, 8, 2), (8, 2, 8, 4),
    (12, 3, 4, 3),
)  # fmt: skip


_CASE = Rows([(8, (8,), 0, 10), (8, (8,), 10, 10)], [(8, (8,), 0, 10)])
_NEURONS = Rows([(8, (4, 6, 8, 12, 16, 24, 32), first, 5) for first in (0, 5)], [(8, (4, 8, 16), 0, 5)])
_CLAUSES = Rows(  # 12 … 128 literals, as in tables A1 and A2
    [(clauses, (8,), 0, 10) for clauses in (3, 6, 8, 10, 15, 20, 25, 32)],
    [(clauses, (8,), 0, 5) for clauses in (3, 8, 15, 32)],
)
_HEATMAP = Rows(
    [(clauses, (4, 6, 8, 12, 16), first, 5) for clauses in (4, 8, 12, 16, 24) for first in (0, 5)],
    [(clauses, (4, 8, 16), 0, 3) for clauses in (4, 8, 16)],
)


def _signed(
    paper: str,
    what: str,
    interval: Interval,
    unit: str,
    scale: float = 1,
    up: bool = True,
    size: float | None = None,
    weak: bool = False,
) -> Finding:
    """Claim that something is above 0, or below; weakly: that it is not clearly on the other side."""
    bounds = (0.0, np.inf) if up else (-np.inf, 0.0)
    return judged(paper, f"{what}: {interval.text(scale)}{unit}", [interval], *bounds, size, weak)


@experiment("section 3.1, figures 2 and A1", 1.5, [_CASE])
def case_study(results: Results) -> Iterator[Finding]:
    """Does splitting neurons by clauses, or at random, help at 8 clauses and 8 neurons?

    Test accuracy: dense 78.7 %, clause-split 99.4 %, random-split 88.7 %. Gram matrices become
    block-diagonal when split by clauses.
    """
    frame = results.frame.set_index(["kind", "trial"]).sort_index()
    accuracy = 100 * frame["accuracy"].unstack("kind")
    for high, low in (("clause", "random"), ("random", "dense"), ("clause", "dense")):
        paper = PAPER_CASE_STUDY[high] - PAPER_CASE_STUDY[low]
        text = f"{label(high)} is {paper:.1f} points above {label(low)}"
        interval = mean(accuracy[high] - accuracy[low])
        yield _signed(text, "mean of the paired differences", interval, " points", size=paper)
    rows = [
        [
            label(kind),
            f"{len(frame.loc[kind, 'weight'].iloc[0])}",
            f"{frame.loc[kind, 'nonzero'].iloc[0]}",
            f"{PAPER_CASE_STUDY[kind]}",
            mean(accuracy[kind]).text(sign=False),
            f"{accuracy[kind].max():.1f}",
            f"{accuracy[kind].min():.1f}",
            mean(frame.loc[kind, "train_accuracy"]).text(100, sign=False),
        ]
        for kind in KINDS
    ]
    heads = ["network", "neurons", "non-zeros", "paper %", "test % [95 %]", "best", "worst", "training %"]
    yield table(f"8 clauses, 8 dense neurons, α = 2, {len(accuracy)} seeds", heads, rows)
    typical = ((accuracy[list(KINDS)] - accuracy[list(KINDS)].mean()) ** 2).sum(axis=1).idxmin()
    for kind in KINDS:
        yield from _matrices(kind, typical, frame.loc[kind, typical])


def matrix(
    title: str,
    values: np.ndarray,
    axes: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]],
    every: tuple[int, int] = (0, 0),
) -> Finding:
    """Return a figure of a matrix in colors, with a line after every few rows and columns."""
    figure = {"type": "matrix", "title": title, "values": values.tolist(), "x": axes[0], "y": axes[1]}
    return {**figure, "columns": list(names[0]), "rows": list(names[1]), "every": list(every)}


def _matrices(kind: str, trial: int, network: pd.Series) -> Iterator[Finding]:
    """Draw weight and Gram matrix, with lines between clauses and between the children of each parent."""
    weight = np.array(network["weight"])
    inputs = [str(i + 1) for i in range(weight.shape[1])]
    literals, factor = len(inputs) // int(network["clauses"]), len(weight) // int(network["neurons"])
    rows = [f"{i // factor + 1}{'abcdefgh'[i % factor] if factor > 1 else ''}" for i in range(len(weight))]
    title = f"{label(kind)}, trial {trial}, {network['accuracy']:.1%}"
    apart = (factor if factor > 1 else 0, literals)
    yield matrix(f"Weights: {title}", weight, ("input", "neuron"), (inputs, rows), apart)
    gram = (weight.T @ weight).round(4)
    yield matrix(f"Gram matrix: {title}", gram, ("input", "input"), (inputs, inputs), (literals, literals))


@experiment("figure 3a", 4, [_NEURONS])
def neurons(results: Results) -> Iterator[Finding]:
    """How does the gain depend on the number of neurons, at 8 clauses?

    Diminishing returns with more neurons; clause splitting is above random splitting.
    """
    results = results.where("neurons")
    for kind in EXPANDED:
        paper = f"the relative improvement of {label(kind)} shrinks with more neurons"
        what, unit = "slope for each doubling of the neurons", " % of relative improvement"
        yield _signed(paper, what, results.slope(kind), unit, 100, up=False)
    ahead = mean(results.differences("clause", "random").to_numpy().T.ravel())
    paper = "clause splitting is above random splitting"
    yield _signed(paper, "mean difference", ahead, " points", 100)
    yield from _gains(results, "8 clauses")


@experiment("figure 3b", 6, [_CLAUSES])
def clauses(results: Results) -> Iterator[Finding]:
    """How does the gain depend on the number of clauses, at 8 neurons?

    Gains rise at first, then level off or decline beyond roughly 16 clauses.
    """
    results, unit = results.where("clauses"), " % of relative improvement"
    for kind in EXPANDED:
        means = {count: i.value for count, i in each(results.values(kind, "gain")).items()}
        peak = max(means, key=lambda count: means[count])
        first, last = ([c for c in means if (c <= peak if up else c >= 15)] for up in (True, False))
        paper = f"the gain of {label(kind)} rises at first with more clauses"
        what = f"slope for each doubling up to the peak at {peak:g} clauses"
        yield _signed(paper, what, results.where(clauses=tuple(first)).slope(kind), unit, 100)
        paper = f"beyond roughly 16 clauses the gain of {label(kind)} levels off or declines"
        fall = results.where(clauses=tuple(last)).slope(kind)
        what = "slope for each doubling from 15 clauses on"
        yield _signed(paper, what, fall, unit, 100, up=False, weak=True)
    yield from _gains(results, "8 neurons")


def _gains(results: Results, fixed: str) -> Iterator[Finding]:
    """Lay out and draw accuracy and relative improvement."""
    accuracy = {kind: 100 * results.values(kind) for kind in KINDS}
    gain = {kind: 100 * results.values(kind, "gain") for kind in EXPANDED}
    columns = [(f"{label(kind)} %", texts(values, sign=False)) for kind, values in accuracy.items()]
    columns += [(f"{label(kind)} gain, relative %", texts(values)) for kind, values in gain.items()]
    title = f"{fixed}, α = 2, {len(accuracy['dense'])} trials, mean [95 %]"
    yield by_width(title, columns, results.axis)
    x = AXES[results.axis]
    for title, y, values, level in (
        ("Relative improvement", "relative improvement, %", gain, 0.0),
        ("Test accuracy", "test accuracy, %", accuracy, None),
    ):
        yield lines(f"{title}, {fixed}", x, y, [line(kind, own) for kind, own in values.items()], level)


@experiment("figure 3c", 12, [_HEATMAP])
def heatmap(results: Results) -> Iterator[Finding]:
    """How does the gain depend on clauses and neurons together?

    The benefit diminishes with fewer clauses; random splitting gives a modest gain nearly everywhere.
    """
    for kind in EXPANDED:
        own = results.frame[results.frame["kind"] == kind]
        # A row for each trial and number of neurons, a column for each number of clauses.
        gain = 100 * own.pivot(index=["neurons", "trial"], columns="clauses", values="gain")
        means, counts = gain.groupby("neurons").mean(), gain.columns
        title = f"Relative improvement, {label(kind)}, %"
        names = [str(c) for c in counts], [str(h) for h in means.index]
        yield matrix(title, means.round(2).to_numpy(), ("clauses", "neurons"), names)
        columns = [(f"{c} clauses", texts(gain[c].unstack("neurons"))) for c in counts]
        yield by_width(title, columns)
        paper = f"{label(kind)} improves on dense over the whole map"
        yield _signed(paper, "mean", mean(gain.to_numpy().ravel()), " %")
        few, more = counts[:2]
        change = (gain[more] - gain[few])[gain.index.get_level_values("neurons") >= 8]
        paper = f"as clauses become fewer, the benefit of {label(kind)} diminishes"
        what = f"{more} against {few} clauses, 8 neurons and more"
        yield _signed(paper, what, mean(change), " % of relative improvement")


@experiment("figures 4a and 4b, top; table A1", 10, [_NEURONS, _CLAUSES])
def capacity(results: Results) -> Iterator[Finding]:
    """Do expanded networks have a higher feature capacity?

    Feature capacity is consistently higher than dense, most with few neurons (the table's numbers
    are lost in the text).
    """
    yield from _measure(results, "clause_capacity", "feature capacity", up=True)


@experiment("figures 4a and 4b, bottom; table A2", 10, [_NEURONS, _CLAUSES])
def orthogonality(results: Results) -> Iterator[Finding]:
    """Are neurons of expanded networks less alike?

    Mean cosine similarity is below dense in all but one setting (the table's numbers are lost in the text).
    """
    yield from _measure(results, "cosine", "mean cosine similarity", up=False)


def _measure(results: Results, name: str, text: str, up: bool) -> Iterator[Finding]:
    for axis, other, head, scale in (
        ("neurons", "clauses", "neurons", 1),
        ("clauses", "neurons", "# literals", 4),
    ):
        own, fixed = results.where(axis, **{other: 8}), f"8 {other}"
        values = {kind: own.values(kind, name) for kind in KINDS}
        columns = [(label(kind), texts(v, digits=3, sign=False)) for kind, v in values.items()]
        yield by_width(f"{text}, {fixed}, mean [95 %]", columns, head, scale)
        if up:
            drawn = [line(kind, _fold(values[kind], values["dense"])) for kind in EXPANDED]
            yield lines(f"Fold change of {text}, {fixed}", AXES[axis], "expanded / dense", drawn, 1.0)
        else:
            drawn = [line(kind, values[kind]) for kind in KINDS]
            yield lines(f"{text.capitalize()}, {fixed}", AXES[axis], text, drawn, 0.0)
        for kind in EXPANDED:
            change = values[kind] - values["dense"]
            found = each(change)
            clear = sum(i.low > 0 if up else i.high < 0 for i in found.values())
            in_all = mean(change.to_numpy().T.ravel())
            bounds = (0.0, np.inf) if up else (-np.inf, 0.0)
            claim = judged(
                f"{text} of {label(kind)} is {'higher' if up else 'lower'} than dense"
                f"{'' if up else ' for all but one setting'} ({fixed})",
                f"mean difference {in_all.text(digits=3)}; its interval excludes 0 in {clear} of "
                f"{len(found)} settings",
                [in_all],
                *bounds,
            )
            # The paper says this of the capacity as a whole, of the cosine in all settings but one.
            yield claim if up else {**without_p(claim), "agrees": clear >= len(found) - 1}


def _fold(values: pd.DataFrame, dense: pd.DataFrame) -> pd.DataFrame:
    return values / dense.where(dense != 0)


@experiment("figure 4c", 4, [_NEURONS])
def regression(results: Results) -> Iterator[Finding]:
    """Does accuracy rise where interference falls?

    Strong correlations: improvement rises with capacity and falls with cosine similarity.
    """
    results = results.where("neurons")
    for measure, name, text, up in (
        ("clause_capacity", "feature capacity", "fold change of feature capacity", True),
        ("cosine", "mean cosine similarity", "change of mean cosine similarity", False),
    ):
        dense, points = results.values("dense", measure), {}
        for kind in EXPANDED:
            own = results.values(kind, measure)
            change = _fold(own, dense) if up else own - dense
            gain = 100 * results.values(kind, "gain")
            trials = [(change.loc[t].tolist(), gain.loc[t].tolist()) for t in change.index]
            points[kind] = [pair for x, y in trials for pair in zip(x, y, strict=True)]
            correlation = np.corrcoef(np.array(points[kind]).T)[0, 1]
            yield _signed(
                f"{label(kind)}: relative improvement {'rises' if up else 'falls'} with the {text}",
                f"slope, trials drawn again (correlation {correlation:+.2f})",
                slope_over_trials(trials),
                " % of relative improvement for each " + ("unit" if up else "0.01"),
                1 if up else 0.01,
                up,
            )
        title, y = f"Improvement against {name}", "relative improvement, %"
        yield {"type": "points", "title": title, "x": text, "y": y, "points": points}


@experiment("section A.5", 6, [_CLAUSES])
def theory(results: Results) -> Iterator[Finding]:
    """How often do sparse neurons see whole clauses, and how often two of them?

    P[cover] ≈ α^−k, collision ratio ≈ α^−(2k−1).
    """
    models = [CoverageModel(*numbers) for numbers in SIMULATED]
    networks = 4_000 if results.quick else 20_000
    made = [(model, simulate(model, networks, seed=0)) for model in models]
    for name in ("coverage", "collision_ratio"):
        off = max(estimate[name].distance(getattr(model, name)) for model, estimate in made)
        text = f"simulation is at most {off:.1f} standard errors off in {len(made)} settings"
        paper = f"the exact formula for the {name.replace('_', ' ')} holds"
        yield {**judged(paper, text, []), "agrees": off <= 3}
    bound = sum(estimate["missed"].mean <= model.missed_bound for model, estimate in made)
    paper = "the union bound holds for the share of networks that miss a clause"
    text = f"simulated share at or below C (1 − p)^(αH) in {bound} of {len(made)} settings"
    yield {**judged(paper, text, []), "agrees": bound == len(made)}
    rows = [
        [
            f"{m.clauses}, {m.literals}, {m.neurons}, {m.factor}",
            f"{m.coverage:.5f}",
            f"{e['coverage'].mean:.5f} ± {e['coverage'].error:.5f}",
            f"{m.coverage_approximation:.5f}",
            f"{m.collision_ratio:.6f}",
            f"{e['collision_ratio'].mean:.6f} ± {e['collision_ratio'].error:.6f}",
            f"{m.collision_ratio_approximation:.6f}",
            f"{m.missed_bound:.3g}",
            f"{e['missed'].mean:.4f}",
        ]
        for m, e in made
    ]
    heads = ["C, k, H, α", "P[cover]", "simulated ± s.e.", "α^−k", "collision ratio", "simulated ± s.e."]
    heads += ["α^−(2k−1)", "missed, bound", "missed, simulated"]
    yield table("Formulas of A.5 beside simulated networks", heads, rows)
    yield from _coverage(results.where("clauses", neurons=8))


def _coverage(results: Results) -> Iterator[Finding]:
    """Count in random-split networks, whose children are split from one parent and then pruned."""
    covering, collisions, covered = (
        results.values("random", measure) for measure in ("covering", "collisions", "covered_clauses")
    )
    models = {count: CoverageModel(int(count), 4, 8) for count in covering}
    dense = pd.Series({count: max(1.0, model.dense_collisions) for count, model in models.items()})
    columns = [
        ("P[cover], formula", {count: f"{model.coverage:.4f}" for count, model in models.items()}),
        ("trained [95 %]", texts(covering, digits=4, sign=False)),
        ("collision ratio, formula", {count: f"{m.collision_ratio:.5f}" for count, m in models.items()}),
        ("trained [95 %]", texts(collisions / dense, digits=5, sign=False)),
        ("clauses covered by a neuron, of all", texts(covered, digits=1, sign=False)),
    ]
    title = "Random-split networks after training, 8 dense neurons; pruning removes some of the coverage"
    yield by_width(title, columns, "clauses")
    exact: dict[str, Any] = {"kind": "formula", "x": [float(count) for count in models]}
    exact |= {key: [model.coverage for model in models.values()] for key in ("means", "low", "high")}
    title, y = "Coverage: exact formula and trained networks", "share of (neuron, clause) pairs covered"
    yield lines(title, "clauses", y, [exact, line("random", covering)], 2.0**-4)


@experiment("further question", 8, [replace(_CASE, others=("gram", *SPLITS))])
def clause_free(results: Results) -> Iterator[Finding]:
    """Can a split find the clauses without being told?

    Not in the paper. Its split by clauses is given the formula.
    """
    frame, rows = results.frame, []
    accuracy = 100 * frame.pivot(index="trial", columns="kind", values="accuracy")
    for kind, own in frame.groupby("kind", sort=False):
        above = {other: mean(accuracy[kind] - accuracy[other]) for other in ("random", "clause")}
        factor = len(own["weight"].iloc[0]) // own["neurons"].iloc[0]
        differences = ["–" if kind == other else interval.text() for other, interval in above.items()]
        seen = f"{(100 * factor * own['covering']).mean():.0f}"
        rows.append([label(kind), mean(accuracy[kind]).text(sign=False), *differences, seen])
        if kind not in KINDS:
            paper = f"asked: {label(kind)} is better than random, without being told the clauses"
            yield _signed(paper, "mean of the paired differences", above["random"], " points")
    heads = ["split", "test %", "above random", "above clauses"]
    heads.append("clauses that a neuron's child sees whole, %")
    yield table(f"8 clauses, 8 dense neurons, α = 2, {len(accuracy)} seeds, mean [95 %]", heads, rows)
    shown = [k for k in ("clause", "random", "coactivation", "learned", "interactions") if k in accuracy]
    drawn = [line(k, {int(frame["neurons"].iloc[0]): accuracy[k].tolist()}) for k in shown]
    yield lines("Test accuracy", "hidden neurons", "test accuracy, %", drawn)
