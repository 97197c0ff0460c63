"""What is special in the findings of single experiments on real data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from fpe.compare.statistics import Interval, mean, ratio_of_sums
from fpe.metrics import relative_improvement
from fpe_reproduction.experiments.findings import (
    AXIS,
    ByKind,
    Curves,
    Differences,
    Finding,
    Results,
    each,
    judged,
    line,
    lines,
    overall,
    table,
)
from fpe_reproduction.experiments.networks import DYNAMIC, FEWER, KINDS, REWIRED, TIMES, label

#: Table A3: relative improvement in per cent by layers and hidden neurons.
PAPER_DEPTH = {
    5: {4: 28.0, 8: 2.6, 12: 0.4, 16: 0.2},
    7: {4: 34.0, 8: 11.0, 12: 1.1, 16: 0.8},
    9: {4: 104.0, 8: 8.7, 12: 2.0, 16: 1.4},
}
#: Table A4: dense and expanded accuracy in per cent by hidden neurons.
PAPER_IMAGENET = {
    6: (13.0, 13.9), 8: (23.8, 25.1), 10: (30.6, 31.9), 12: (38.1, 38.8), 14: (42.9, 43.6), 16: (46.9, 47.0),
}  # fmt: skip
#: Gain of dynamic masks over one-shot random by dense neurons, in points (A.7).
PAPER_DYNAMIC = {4: 4.5, 8: 1.9, 16: 0.5}
#: The share of the gap to twice the parameters that should be closed, in the mean over the widths.
ENOUGH = 0.9
#: The chosen dynamic masks; those that stay packable as blocks, for each data set and for others; and as codes.
BEST, CODED = "moved", "moved-kept"
PACKABLE = {"fashion-mnist": "moved-blocks-x6", "banking77": "moved-blocks"}


def equivalent(results: Results) -> Iterator[Finding]:
    """Compare random-split networks with dense ones of more parameters (figure 6a).

    A trial is compared with the dense networks of its own seed: their accuracies, made monotone, are linear
    between their widths; beyond the last one the ratio is that of the last.
    """
    counts = results.frame.groupby(["kind", "hidden"])["nonzero"].first()
    dense, random = results.values("dense"), results.values("random")
    rows, points = [], {}
    for hidden in random.columns:
        own = counts["random", hidden]

        def ratio(curve: pd.Series, accuracy: float, own: int = own) -> float:
            return float(
                np.interp(accuracy, np.maximum.accumulate(curve), counts["dense"][dense.columns]) / own
            )

        points[hidden] = [ratio(dense.loc[t], random.loc[t, hidden]) for t in random.index]
        times = mean(points[hidden])
        text = times.text(1, 2, sign=False)
        of_means = ratio(dense.mean(), random[hidden].mean())
        accuracy = mean(random[hidden].tolist()).text(100, sign=False)
        rows.append([f"{hidden}", f"{own:,}", accuracy, f"{of_means * own:,.0f}", text])
        paper = "a dense network needs over 1.2 times the parameters to match"
        yield judged(paper, f"{results.name}, {hidden} neurons: {text} times", [times], 1.2)
    heads = ["neurons", "non-zeros", "random-split %", "dense parameters to match", "times [95 %]"]
    yield table(f"{results.name}, parameters of a dense network that matches", heads, rows)
    drawn = [line("random", points)]
    yield lines(f"{results.name}: parameters to match", AXIS, "dense / expanded parameters", drawn, 1.2)


def share_before(kind: str) -> float:
    """Return the share of the training before the split, in per cent."""
    return 100 * (KINDS[kind].at or 0.0)


def timing(results: Results) -> Iterator[Finding]:
    """Draw accuracy over the time of the split (figure 6b)."""
    kinds = sorted([*TIMES, "random"], key=share_before)
    above = {kind: 100 * results.differences(kind, "dense") for kind in kinds}
    drawn = [
        line(f"width-{hidden}", {share_before(kind): above[kind][hidden] for kind in kinds})
        for hidden in results.widths("dense", *kinds)
    ]
    x, y = "share of the training before the split, %", "points above dense"
    yield lines(f"{results.name}: when to split", x, y, drawn, 0.0, "linear")


def interference(results: Results) -> Iterator[Finding]:
    """Lay out and draw cosine similarity and capacity of two factors (figure 6c)."""
    kinds = ("dense", "random", "random-x4")
    for measure, text in (("cosine", "mean cosine similarity"), ("capacity", "feature capacity")):
        values = {kind: results.values(kind, measure) for kind in kinds}
        rows = [
            [f"{h}", *(mean(v[h].tolist()).text(digits=3, sign=False) for v in values.values())]
            for h in results.widths(*kinds)
        ]
        title = f"{results.name}, {text} of the first layer, mean [95 %]"
        yield table(title, ["neurons", *map(label, kinds)], rows)
        drawn = [line(kind, v) for kind, v in values.items()]
        yield lines(f"{results.name}: {text}", AXIS, text, drawn, 0.0 if measure == "cosine" else None)


def spread(results: Results) -> Iterator[Finding]:
    """Compare the range of accuracies over the factors at the largest and the smallest width (figure 6d)."""
    kinds = ("random", "random-x3", "random-x4", "random-x8")
    values = np.stack([results.values(kind)[results.widths("dense", *kinds)] for kind in kinds])
    ranges = values.max(axis=0) - values.min(axis=0)
    change = mean(ranges[:, -1] - ranges[:, 0])
    what = "spread over the factors at the largest width less that at the smallest"
    text = f"{results.name}, {what}: {change.text(100)} points"
    yield judged("differences between factors diminish as width grows", text, [change], -np.inf, 0.0)


def gains(results: Results) -> Iterator[Finding]:
    """Lay out the relative improvements on dense of the paper's two splits."""
    kinds = ("gram", "random")
    found = [each(results.values(kind, "gain")) for kind in kinds]
    rows = [[f"{h}", *(f[h].text(100) for f in found)] for h in results.widths("dense", *kinds)]
    heads = ["neurons", *(f"{label(kind)}, relative %" for kind in kinds)]
    yield table(f"{results.name}, relative improvement on dense, mean [95 %]", heads, rows)


def depth(results: Results) -> Iterator[Finding]:
    """Compare deep networks, dense and expanded (table A3)."""
    drawn = []
    for layers in sorted(results.frame["layers"].unique()):
        own, deep = results.where(layers=layers), layers + 1
        gain = own.values("random", "gain")
        few, many = gain.columns[0], gain.columns[-1]
        change = mean((gain[few] - gain[many]).tolist())
        ends = [mean(gain[width].tolist()).text(100) for width in (few, many)]
        yield judged(
            f"with {deep} layers, {few} neurons gain relatively more than {many}",
            f"{results.name}: {ends[0]} % against {ends[1]} %; difference: {change.text(100)} %",
            [change],
        )
        paper = {width: f"{value:+g}" for width, value in PAPER_DEPTH.get(deep, {}).items()}
        yield _beside_the_paper(own, f"{results.name}, {deep} layers, mean [95 %]", "paper's, %", paper)
        drawn.append(line(f"depth-{deep}", 100 * own.differences("random", "dense")))
    yield lines(f"{results.name}: random-split above dense", AXIS, "points above dense", drawn, 0.0)


def imagenet(results: Results) -> Iterator[Finding]:
    """Compare networks of five layers on many classes (table A4)."""
    paper = {width: f"{dense} → {expanded}" for width, (dense, expanded) in PAPER_IMAGENET.items()}
    yield _beside_the_paper(results, f"{results.name}, five layers, mean [95 %]", "paper's, ImageNet", paper)


def _beside_the_paper(results: Results, title: str, head: str, paper: dict[int, str]) -> Finding:
    dense, random, gain = results.values("dense"), results.values("random"), results.values("random", "gain")
    counts = results.frame.groupby(["kind", "hidden"])["nonzero"].first()
    points = each(results.differences("random", "dense"))
    rows = [
        [
            f"{hidden}",
            f"{counts['dense', hidden]:,}",
            mean(dense[hidden].tolist()).text(100, sign=False),
            mean(random[hidden].tolist()).text(100, sign=False),
            points[hidden].text(100),
            mean(gain[hidden].tolist()).text(100),
            f"{100 * relative_improvement(random[hidden].mean(), dense[hidden].mean()):+.1f}",
            paper.get(hidden, "–"),
        ]
        for hidden in results.widths("dense", "random")
    ]
    heads = [
        "neurons",
        "non-zeros",
        "dense %",
        "random-split %",
        "points",
        "relative %",
        "of the means",
        head,
    ]
    return table(title, heads, rows)


def dynamic(results: Results) -> Iterator[Finding]:
    """Compare the best share of weights that move at random with fixed masks (A.7)."""
    found = {kind: each(results.differences(kind, "random")) for kind in REWIRED}
    for hidden in results.widths("random", *REWIRED):
        best = max(found, key=lambda kind: found[kind][hidden].value)
        size = PAPER_DYNAMIC.get(hidden)
        paper = "better than one-shot random" if size is None else f"+{size} % over one-shot random"
        interval = found[best][hidden]
        text = f"{results.name}, {hidden} neurons, best with {label(best)}: {interval.text(100)} points"
        yield judged(f"moving masks: {paper}", text, [interval], size=None if size is None else size / 100)


def rounding(results: Results) -> Iterator[Finding]:
    """Lay out and draw what rounding the weights to few bits changes."""
    kinds = ("dense", "random", "columns")
    accuracy = {kind: results.values(kind) for kind in kinds}
    change = {
        bits: {kind: 100 * (results.values(kind, f"accuracy_int{bits}") - accuracy[kind]) for kind in kinds}
        for bits in (8, 4)
    }
    rows, heads = [], ["neurons"]
    for kind in kinds:
        heads += [f"{label(kind)} %", "8 bits, points", "4 bits, points"]
    for hidden in results.widths(*kinds):
        row = [f"{hidden}"]
        for kind in kinds:
            row.append(mean(accuracy[kind][hidden].tolist()).text(100, sign=False))
            row += [mean(change[bits][kind][hidden].tolist()).text(1, 2) for bits in change]
        rows.append(row)
    title = f"{results.name}, accuracy and what rounding the weights changes, mean [95 %]"
    yield table(title, heads, rows)
    for bits, of_kinds in change.items():
        title = f"{results.name}: what rounding the weights to {bits} bits changes"
        yield lines(title, AXIS, "points", [line(kind, values) for kind, values in of_kinds.items()], 0.0)


def gap_closed(
    results: Results, kind: str, low: str = "dense", high: str = "dense-x2"
) -> tuple[dict[int, Interval], Interval]:
    """Return the share of the way from `low` to `high` that a kind reaches, at each width and in their mean."""
    widths = results.widths(kind, low, high)
    parts, wholes = (results.differences(k, low)[widths].to_numpy() for k in (kind, high))
    found, in_all = ratio_of_sums(parts, wholes)
    return dict(zip(widths, found, strict=True)), in_all


def _gaps(results: Results, kinds: Sequence[str]) -> Finding:
    """Lay out the share of the gap that each kind closes, best first."""
    made = [(label(kind), *gap_closed(results, kind)) for kind in kinds if results.widths(kind)]
    made.sort(key=lambda row: -row[2].value)
    widths = results.widths("dense", "dense-x2")
    rows = [
        [
            text,
            *(found[h].text(100, 0, False) if h in found else "–" for h in widths),
            in_all.text(100, 0, False),
        ]
        for text, found, in_all in made
    ]
    heads = ["", *(f"{hidden} neurons" for hidden in widths), "mean over widths"]
    return table(f"{results.name}, gap to twice the parameters closed, % [95 %]", heads, rows)


def rewiring(results: Results) -> Iterator[Finding]:
    """Compare dynamic masks with dense networks of twice the count, and with rivals."""
    packable = PACKABLE.get(results.name.removesuffix("-cosine"), "moved-blocks")
    for low, high, note in (("dense", "dense-x2", ""), ("steady", "steady-x2", ", dense at rate 0.003")):
        found, in_all = gap_closed(results, BEST, low, high)
        text = ", ".join(f"{i.text(100, 0, False)} at {hidden}" for hidden, i in found.items())
        yield judged(
            f"asked: {label(BEST)} closes at least {100 * ENOUGH:.0f} % of the gap to twice the parameters{note}",
            f"{results.name}, mean over widths {in_all.text(100, 0, False)} % ({text})",
            [in_all],
            ENOUGH,
        )
    rivals = [kind for by in ("variance", "random") for kind in FEWER[by]]
    for hidden in results.widths(BEST):
        present = [kind for kind in rivals if hidden in results.widths(kind)]
        differences = {kind: each(results.differences(BEST, kind))[hidden] for kind in present}
        best = min(present, key=lambda kind: differences[kind].value)
        yield judged(
            f"asked: {label(BEST)} is above the best network that reads fewer inputs",
            f"{results.name}, {hidden} neurons, {label(best)}: {differences[best].text(100)} points",
            [differences[best]],
        )
    for kind in (packable, CODED):
        difference = results.differences(kind, BEST)
        text = ", ".join(f"{i.text(100)} at {hidden}" for hidden, i in each(difference).items())
        yield judged(
            f"asked: {label(kind)}, which stays packable, is within a point of {label(BEST)} at every width",
            f"{results.name}, points by neurons: {text}; over all {overall(difference).text(100)}",
            list(each(difference).values()),
            -0.01,
        )
    yield _gaps(results, [*DYNAMIC, "random", *rivals])
    rivals = ["random", "still", "rigl", "rigl-erk", packable, CODED]
    yield from Differences([(BEST, kind) for kind in rivals])(results)
    yield from Curves(("dense", "random", BEST, packable, "dense-x2"))(results)
    yield from Curves(("random", BEST, packable, "dense-x2"), "dense")(results)


def choices(results: Results) -> Iterator[Finding]:
    """Compare all dynamic masks with the chosen ones, on held-out training data."""
    free = [kind for kind in DYNAMIC if "columns" not in kind and "blocks" not in kind]
    closed = {kind: gap_closed(results, kind)[1] for kind in free}
    best = max(free, key=lambda kind: (closed[kind].value, kind))
    ours, other = (closed[kind].text(100, 0, False) for kind in (BEST, best))
    text = f"{results.name}: {label(BEST)} {ours} %, best {label(best)} {other} %"
    paper = "asked: the chosen way of moving masks is the best of those tried, in gap closed"
    yield {**judged(paper, text, []), "agrees": best == BEST}
    yield _gaps(results, list(DYNAMIC))
    title = f", points above {label(BEST)} (α = 4), mean [95 %]"
    yield from ByKind([kind for kind in DYNAMIC if kind != BEST], BEST, title)(results)
