"""What the trained Boolean networks say about the figures and tables of sections 3.1, 3.2 and A.6."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fpe.compare.statistics import Interval, mean, slope, slope_over_trials
from fpe.metrics import fold_change, relative_improvement
from fpe_reproduction.experiments.boolean import KINDS
from fpe_reproduction.experiments.findings import (
    Claim,
    Findings,
    Line,
    Lines,
    Matrix,
    Points,
    Table,
    sign_claim,
)
from fpe_reproduction.experiments.labels import LABELS

#: One trained network, as `run_row` returns it.
Network = dict[str, Any]

#: Of the dense, clause-split and random-split network, in per cent (3.1).
PAPER_CASE_STUDY = {"dense": 78.7, "clause": 99.4, "random": 88.7}

SPLITS = ("clause", "random")


def by_trial(networks: Iterable[Network]) -> dict[tuple[int, int, int], dict[str, Network]]:
    """Put the networks together that come from one dense one: (clauses, neurons, trial) to kinds."""
    together: dict[tuple[int, int, int], dict[str, Network]] = {}
    for network in networks:
        key = network["clauses"], network["neurons"], network["trial"]
        together.setdefault(key, {})[network["kind"]] = network
    return dict(sorted(together.items()))


def _over(
    networks: Iterable[Network], axis: str, value: Callable[[dict[str, Network]], float]
) -> dict[float, list[float]]:
    """Collect a value of each trial, by number of neurons or of clauses."""
    points: dict[float, list[float]] = {}
    for kinds in by_trial(networks).values():
        points.setdefault(kinds["dense"][axis], []).append(value(kinds))
    return dict(sorted(points.items()))


def _improvement(kind: str) -> Callable[[dict[str, Network]], float]:
    return lambda kinds: relative_improvement(kinds[kind]["accuracy"], kinds["dense"]["accuracy"])


def _trial_slopes(networks: Sequence[Network], axis: str, kind: str, keep: Callable[[int], bool]) -> Interval:
    """Return the slope of relative improvement over the doublings of `axis`, over trials."""
    improvement = _improvement(kind)
    points: dict[int, tuple[list[float], list[float]]] = {}
    for (_, _, trial), kinds in by_trial(networks).items():
        if keep(kinds["dense"][axis]):
            x, y = points.setdefault(trial, ([], []))
            x.append(math.log2(kinds["dense"][axis]))
            y.append(improvement(kinds))
    return mean([slope(x, y) for x, y in points.values()])


def case_study(networks: Sequence[Network]) -> Findings:
    """Compare dense, clause-split and random-split networks at 8 clauses and 8 neurons (3.1)."""
    trials = list(by_trial(networks).values())
    accuracy = {kind: [t[kind]["accuracy"] for t in trials] for kind in KINDS}
    found = Findings()
    for high, low in (("clause", "random"), ("random", "dense"), ("clause", "dense")):
        difference = mean([a - b for a, b in zip(accuracy[high], accuracy[low], strict=True)])
        paper = PAPER_CASE_STUDY[high] - PAPER_CASE_STUDY[low]
        text = f"{LABELS[high]} is {paper:.1f} points above {LABELS[low]}"
        found.claims.append(
            sign_claim(text, "mean of the paired differences", difference, True, 100, " points", size=paper)
        )
    rows = []
    for kind in KINDS:
        first = trials[0][kind]
        rows.append(
            [
                LABELS[kind],
                f"{len(first['weight'])}",
                f"{first['nonzero']}",
                f"{PAPER_CASE_STUDY[kind]}",
                mean(accuracy[kind]).text(100, sign=False),
                f"{100 * max(accuracy[kind]):.1f}",
                f"{100 * min(accuracy[kind]):.1f}",
                mean([t[kind]["train_accuracy"] for t in trials]).text(100, sign=False),
            ]
        )
    heads = ["network", "neurons", "non-zeros", "paper %", "test % [95 %]", "best", "worst", "training %"]
    found.tables.append(Table(f"8 clauses, 8 dense neurons, α = 2, {len(trials)} seeds", heads, rows))
    shown = _typical(trials)
    literals = len(shown["dense"]["weight"][0]) // shown["dense"]["clauses"]
    for kind in KINDS:
        found.figures += _matrices(shown[kind], literals)
    return found


def _typical(trials: Sequence[dict[str, Network]]) -> dict[str, Network]:
    """Choose the trial that is nearest to the mean accuracy of each kind."""
    means = {kind: np.mean([t[kind]["accuracy"] for t in trials]) for kind in KINDS}
    return min(trials, key=lambda t: sum((t[kind]["accuracy"] - means[kind]) ** 2 for kind in KINDS))


def _matrices(network: Network, literals: int) -> list[Lines | Points | Matrix]:
    """Draw weight and Gram matrix, clauses apart, children of one parent together."""
    weight = np.array(network["weight"])
    inputs = [str(i + 1) for i in range(weight.shape[1])]
    factor = len(weight) // network["neurons"]
    letters = "abcdefghijklmnop"
    rows = [f"{i // factor + 1}{letters[i % factor] if factor > 1 else ''}" for i in range(len(weight))]
    apart = factor if factor > 1 else 0
    title = f"{LABELS[network['kind']]}, trial {network['trial']}, {network['accuracy']:.1%}"
    gram = (weight.T @ weight).round(4).tolist()
    return [
        Matrix(
            f"Weights: {title}",
            weight.tolist(),
            "input",
            "neuron",
            inputs,
            rows,
            (apart, literals),
        ),
        Matrix(f"Gram matrix: {title}", gram, "input", "input", inputs, inputs, (literals, literals)),
    ]


def neurons(networks: Sequence[Network]) -> Findings:
    """Relate the gain to the number of neurons at 8 clauses (figure 3a)."""
    found = _gains(networks, "neurons", "hidden neurons of the dense network", "8 clauses")
    for kind in SPLITS:
        trend = _trial_slopes(networks, "neurons", kind, lambda _: True)
        found.claims.append(
            sign_claim(
                f"the relative improvement of {LABELS[kind]} shrinks with more neurons",
                "slope for each doubling of the neurons",
                trend,
                False,
                100,
                " % of relative improvement",
            )
        )
    ahead = mean([t["clause"]["accuracy"] - t["random"]["accuracy"] for t in by_trial(networks).values()])
    found.claims.append(
        sign_claim(
            "clause splitting is above random splitting", "mean difference", ahead, True, 100, " points"
        )
    )
    return found


def clauses(networks: Sequence[Network]) -> Findings:
    """Relate the gain to the number of clauses at 8 neurons (figure 3b)."""
    found = _gains(networks, "clauses", "clauses", "8 neurons")
    for kind in SPLITS:
        means = {n: mean(v) for n, v in _over(networks, "clauses", _improvement(kind)).items()}
        peak = max(means, key=lambda n: means[n].value)
        rise = _trial_slopes(networks, "clauses", kind, lambda n, peak=peak: n <= peak)  # type: ignore[misc]
        fall = _trial_slopes(networks, "clauses", kind, lambda n: n >= 15)
        found.claims += [
            sign_claim(
                f"the gain of {LABELS[kind]} rises at first with more clauses",
                f"slope for each doubling up to the peak at {peak:g} clauses",
                rise,
                True,
                100,
                " % of relative improvement",
            ),
            Claim(
                f"beyond roughly 16 clauses the gain of {LABELS[kind]} levels off or declines",
                f"slope for each doubling from 15 clauses on: {fall.text(100)} % of relative improvement",
                not fall.above_zero,
            ),
        ]
    return found


def _gains(networks: Sequence[Network], axis: str, label: str, fixed: str) -> Findings:
    """Draw and tabulate accuracy and relative improvement over neurons or clauses."""
    accuracy = {
        kind: _over(networks, axis, lambda k, kind=kind: 100 * k[kind]["accuracy"])  # type: ignore[misc]
        for kind in KINDS
    }
    gain = {
        kind: {n: [100 * g for g in v] for n, v in _over(networks, axis, _improvement(kind)).items()}
        for kind in SPLITS
    }
    rows = [
        [f"{n:g}"]
        + [mean(accuracy[kind][n]).text(sign=False) for kind in KINDS]
        + [mean(gain[kind][n]).text() for kind in SPLITS]
        for n in accuracy["dense"]
    ]
    heads = [axis, *(f"{LABELS[k]} %" for k in KINDS), *(f"{LABELS[k]} gain, relative %" for k in SPLITS)]
    trials = len(next(iter(accuracy["dense"].values())))
    title = f"{fixed}, α = 2, {trials} trials, mean [95 %]"
    return Findings(
        tables=[Table(title, heads, rows)],
        figures=[
            Lines(
                f"Relative improvement, {fixed}",
                label,
                "relative improvement, %",
                [Line.of(k, gain[k]) for k in SPLITS],
                0.0,
            ),
            Lines(
                f"Test accuracy, {fixed}", label, "test accuracy, %", [Line.of(k, accuracy[k]) for k in KINDS]
            ),
        ],
    )


def heatmap(networks: Sequence[Network]) -> Findings:
    """Relate the gain to both, clauses and neurons (figure 3c)."""
    found = Findings()
    cells = sorted({(n["clauses"], n["neurons"]) for n in networks})
    columns, rows = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    for kind in SPLITS:
        gains: dict[tuple[int, int], list[float]] = {}
        for (c, h, _), kinds in by_trial(networks).items():
            gains.setdefault((c, h), []).append(100 * _improvement(kind)(kinds))
        values = [[round(float(np.mean(gains[c, h])), 2) for c in columns] for h in rows]
        title = f"Relative improvement, {LABELS[kind]}, %"
        names = [str(c) for c in columns], [str(h) for h in rows]
        found.figures.append(Matrix(title, values, "clauses", "neurons", *names))
        table = [[str(h), *(mean(gains[c, h]).text() for c in columns)] for h in rows]
        found.tables.append(Table(title, ["neurons", *(f"{c} clauses" for c in columns)], table))
        average = mean([g for values in gains.values() for g in values])
        found.claims.append(
            sign_claim(f"{LABELS[kind]} improves on dense over the whole map", "mean", average, True, 1, " %")
        )
        few, more = columns[:2]
        wide = [h for h in rows if h >= 8]
        fewest = mean([a - b for h in wide for a, b in zip(gains[more, h], gains[few, h], strict=True)])
        found.claims.append(
            sign_claim(
                f"as clauses become fewer, the benefit of {LABELS[kind]} diminishes",
                f"{more} against {few} clauses, 8 neurons and more",
                fewest,
                True,
                1,
                " % of relative improvement",
            )
        )
    return found


def capacity(networks: Sequence[Network]) -> Findings:
    """Compare the feature capacity of expanded and dense networks (figures 4a, 4b, top; table A1)."""
    return _measure(networks, "capacity", "feature capacity", up=True)


def orthogonality(networks: Sequence[Network]) -> Findings:
    """Compare the mean cosine similarity of expanded and dense networks (4a, 4b, bottom; table A2)."""
    return _measure(networks, "cosine", "mean cosine similarity", up=False)


def _measure(networks: Sequence[Network], name: str, label: str, up: bool) -> Findings:
    found = Findings()
    views = (
        ("neurons", "hidden neurons of the dense network", [n for n in networks if n["clauses"] == 8]),
        ("clauses", "clauses", [n for n in networks if n["neurons"] == 8]),
    )
    for axis, x, chosen in views:
        fixed = "8 clauses" if axis == "neurons" else "8 neurons"
        values = {
            kind: _over(chosen, axis, lambda k, kind=kind: k[kind][name])  # type: ignore[misc]
            for kind in KINDS
        }
        found.tables.append(_measure_table(axis, values, f"{label}, {fixed}"))
        if up:
            change = {
                kind: _over(chosen, axis, lambda k, kind=kind: fold_change(k[kind][name], k["dense"][name]))  # type: ignore[misc]
                for kind in SPLITS
            }
            lines = [Line.of(kind, change[kind]) for kind in SPLITS]
            found.figures.append(Lines(f"Fold change of {label}, {fixed}", x, "expanded / dense", lines, 1.0))
        else:
            lines = [Line.of(kind, values[kind]) for kind in KINDS]
            found.figures.append(Lines(f"{label.capitalize()}, {fixed}", x, label, lines, 0.0))
        for kind in SPLITS:
            pairs = {n: zip(values[kind][n], dense, strict=True) for n, dense in values["dense"].items()}
            differences = {n: [a - b for a, b in both] for n, both in pairs.items()}
            clear = [n for n, d in differences.items() if _clear(mean(d), up)]
            overall = mean([v for d in differences.values() for v in d])
            # The paper says this of the capacity as a whole, of the cosine in all settings but one.
            holds = _clear(overall, up) if up else len(clear) >= len(differences) - 1
            found.claims.append(
                Claim(
                    f"{label} of {LABELS[kind]} is {'higher' if up else 'lower'} than dense"
                    f"{'' if up else ' for all but one setting'} ({fixed})",
                    f"mean difference {overall.text(digits=3)}; its interval excludes 0 in {len(clear)} of "
                    f"{len(differences)} settings",
                    holds,
                )
            )
    return found


def _clear(interval: Interval, up: bool) -> bool:
    return interval.above_zero if up else interval.below_zero


def _measure_table(axis: str, values: dict[str, dict[float, list[float]]], title: str) -> Table:
    factor = 1 if axis == "neurons" else 4
    rows = [
        [f"{factor * n:g}", *(mean(values[k][n]).text(digits=3, sign=False) for k in KINDS)]
        for n in values["dense"]
    ]
    head = "neurons" if axis == "neurons" else "# literals"
    return Table(f"{title}, mean [95 %]", [head, *(LABELS[k] for k in KINDS)], rows)


def regression(networks: Sequence[Network]) -> Findings:
    """Relate the gain to the fall of interference over numbers of neurons (figure 4c)."""
    found = Findings()
    measures: tuple[tuple[str, str, bool, Callable[[dict[str, Network], str], float]], ...] = (
        (
            "feature capacity",
            "fold change of feature capacity",
            True,
            lambda k, kind: fold_change(k[kind]["capacity"], k["dense"]["capacity"]),
        ),
        (
            "mean cosine similarity",
            "change of mean cosine similarity",
            False,
            lambda k, kind: k[kind]["cosine"] - k["dense"]["cosine"],
        ),
    )
    for name, label, up, change in measures:
        points: dict[str, list[tuple[float, float]]] = {}
        for kind in SPLITS:
            trials: dict[int, tuple[list[float], list[float]]] = {}
            for (_, _, trial), kinds in by_trial(networks).items():
                x, y = trials.setdefault(trial, ([], []))
                x.append(change(kinds, kind))
                y.append(100 * _improvement(kind)(kinds))
            points[kind] = [p for x, y in trials.values() for p in zip(x, y, strict=True)]
            found.claims.append(
                sign_claim(
                    f"{LABELS[kind]}: relative improvement {'rises' if up else 'falls'} with the {label}",
                    f"slope, trials drawn again (correlation {_correlation(points[kind]):+.2f})",
                    slope_over_trials(list(trials.values())),
                    up,
                    1 if up else 0.01,
                    " % of relative improvement for each " + ("unit" if up else "0.01"),
                )
            )
        found.figures.append(Points(f"Improvement against {name}", label, "relative improvement, %", points))
    return found


def _correlation(points: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(points).T
    return float(np.corrcoef(x, y)[0, 1])
