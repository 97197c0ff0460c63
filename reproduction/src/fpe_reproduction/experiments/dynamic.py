"""Experiments on dynamic masks: the choice of settings on training data, and a comparison with rivals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fpe_reproduction.experiments.experiment import BOTH, experiment
from fpe_reproduction.experiments.findings import (
    Finding,
    Results,
    above,
    accuracies,
    by_kind,
    curves,
    differences,
    each,
    judged,
    overall,
    table,
)
from fpe_reproduction.experiments.networks import DYNAMIC, FEWER, STARTS, label
from fpe_reproduction.experiments.tasks import Family
from fpe_reproduction.statistics import Interval, ratio_of_sums

#: The share of the gap to twice the parameters that should be closed, in the mean over the widths.
ENOUGH = 0.9
#: The chosen dynamic masks; those that stay packable as blocks, for each data set and for others; and as
#: codes.
BEST, CODED = "moved", "moved-kept"
PACKABLE = {"fashion-mnist": "moved-blocks-x6", "banking77": "moved-blocks"}
DENSE = ("dense", "dense-x2", "steady", "steady-x2")
MOVED = ("moved", "moved-kept", "moved-blocks", "moved-blocks-x6", "still", "rigl", "rigl-erk")
FEWER_INPUTS = [kind for by in ("variance", "random") for kind in FEWER[by]]
CHOICES = [
    Family("choices-dense", DENSE, (8,)),
    *(Family(f"choices{i // 6}", list(DYNAMIC)[i : i + 6], (8,)) for i in range(0, len(DYNAMIC), 6)),
    Family("starts", tuple(STARTS), (8,)),
]
REWIRING = [
    Family("rewiring-dense", DENSE, (4, 8, 16)),
    Family("rewiring-rivals", ("random", *FEWER_INPUTS), (4, 8, 16)),
    Family("rewiring", MOVED, (4, 8, 16)),
]


@experiment("further question", 60, CHOICES, ("banking77",), setup="validation")
def rewiring_choices(results: Results) -> Iterator[Finding]:
    """Which weights should be rewired, when, and from which initial masks?

    Not in the paper, which rewires at random.
    """
    free = [kind for kind in DYNAMIC if "columns" not in kind and "blocks" not in kind]
    closed = {kind: gap_closed(results, kind)[1] for kind in free}
    best = max(free, key=lambda kind: (closed[kind].value, kind))
    ours, other = (f"{label(kind)} {closed[kind].text(100, 0, False)} %" for kind in (BEST, best))
    text = f"{results.name}: {ours}, best {other}"
    paper = "asked: the chosen rewiring is the best of those tried, in gap closed"
    yield {**judged(paper, text, []), "agrees": best == BEST}
    yield _gaps(results, list(DYNAMIC))
    title = f", points above {label(BEST)} (α = 4), mean [95 %]"
    yield by_kind(results, [kind for kind in DYNAMIC if kind != BEST], BEST, title)
    starts = [(kind, "start-copied") for kind in STARTS if kind != "start-copied"]
    yield differences(results, [*starts, ("start-copied", "dense")], ", outgoing weights")
    yield curves(results, ("dense", "rigl", BEST, "dense-x2"))


@experiment("further question", 60, REWIRING, BOTH, trials=10, setup="cosine")
def rewiring(results: Results) -> Iterator[Finding]:
    """Do dynamic masks reach a dense network of twice the parameters?

    Not in the paper.
    """
    packable = PACKABLE.get(results.name.removesuffix("-cosine"), "moved-blocks")
    for low, high, note in (("dense", "dense-x2", ""), ("steady", "steady-x2", ", dense at rate 0.003")):
        found, in_all = gap_closed(results, BEST, low, high)
        text = ", ".join(f"{i.text(100, 0, False)} at {hidden}" for hidden, i in found.items())
        yield judged(
            f"asked: {label(BEST)} closes at least {100 * ENOUGH:.0f} % of the gap to twice the "
            f"parameters{note}",
            f"{results.name}, mean over widths {in_all.text(100, 0, False)} % ({text})",
            [in_all],
            ENOUGH,
        )
    for other in ("random", "still", "rigl", "rigl-erk"):
        yield from above(results, BEST, other)
    for hidden in results.widths(BEST):
        present = [kind for kind in FEWER_INPUTS if hidden in results.widths(kind)]
        lead = {kind: each(results.differences(BEST, kind))[hidden] for kind in present}
        best = min(present, key=lambda kind: lead[kind].value)
        yield judged(
            f"asked: {label(BEST)} is above the best network with fewer inputs",
            f"{results.name}, {hidden} neurons, {label(best)}: {lead[best].text(100)} points",
            [lead[best]],
        )
    for kind in (packable, CODED):
        difference = results.differences(kind, BEST)
        text = ", ".join(f"{i.text(100)} at {hidden}" for hidden, i in each(difference).items())
        yield judged(
            f"asked: {label(kind)}, which stays packable, is within a point of {label(BEST)} at every width",
            f"{results.name}, points by neurons: {text}; over all {overall(difference).text(100)}",
            each(difference).values(),
            -0.01,
        )
    yield _gaps(results, [*DYNAMIC, "random", *FEWER_INPUTS])
    yield accuracies(results, ("dense", "random", *MOVED, "dense-x2", "steady", "steady-x2"))
    yield accuracies(results, FEWER_INPUTS, ", the plain rival")
    rivals = ["random", "still", "rigl", "rigl-erk", packable, CODED]
    yield differences(results, [(BEST, kind) for kind in rivals])
    yield curves(results, ("dense", "random", BEST, packable, "dense-x2"))
    yield curves(results, ("random", BEST, packable, "dense-x2"), "dense")


def gap_closed(
    results: Results, kind: str, low: str = "dense", high: str = "dense-x2"
) -> tuple[dict[int, Interval], Interval]:
    """Return how far a kind gets from `low` to `high`, as a share, at each width and in their mean."""
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
