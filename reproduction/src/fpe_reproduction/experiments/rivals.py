"""Experiments beyond the paper's first edition: controls, rivals, and further questions.

Claims that the paper does not make begin with "asked".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fpe_reproduction.experiments.experiment import ALL_REAL, BOTH, experiment
from fpe_reproduction.experiments.findings import (
    AXIS,
    Finding,
    Results,
    above,
    accuracies,
    by_kind,
    by_width,
    claims,
    close,
    compared,
    curves,
    differences,
    line,
    lines,
    texts,
)
from fpe_reproduction.experiments.networks import DROPPED, FEWER, RANKED, label
from fpe_reproduction.experiments.splits import SPLITS
from fpe_reproduction.experiments.tasks import Family
from fpe_reproduction.experiments.vision import COLUMNS, CORE, FACTOR

ASKED, LATER = "further question", "the later edition"
#: Factors, as in the names of networks.
FACTORS = {2: "", 3: "-x3", 4: "-x4"}
#: Splits in one figure at most, so that their lines can be told apart.
IN_A_FIGURE = 5
CNN = Family("cnn", (), (4, 8, 16), (4,), features=256)
FEWER_INPUTS = Family("fewer", [kind for kinds in zip(*FEWER.values(), strict=True) for kind in kinds])
_X4 = ("coactivation-x4", "magnitude-x4", "steepest-x4", "learned-x4", "ahead-x4")
SPLIT = Family("splits", (*SPLITS, "ahead", *_X4))
_FEWER = ("columns", "fewer-variance")
WIDE = Family("wide", ("dense", "random", *_FEWER), (64, 256, 1024), (32, 64), small=_FEWER)
DISTILLED = Family("distilled", ("distilled-dense", "distilled-random", "distilled-columns"), together=True)
DEEP_KINDS = ("dense", "random", "random-first", "columns-first")
BLOCKS = [
    CORE,
    FACTOR,
    COLUMNS,
    Family("blocks", ("shared-x3", "shared-x4", *(kind for kinds in RANKED.values() for kind in kinds))),
    Family("blocks", DEEP_KINDS, (8, 16, 32), (8,), layers=4, together=True),
    Family("gated", (), (8, 16, 32), (8,)),
]


@experiment(
    "the later edition", 8, [CNN, replace(CNN, features=512, full_only=True)], ("fashion-mnist",), trials=10
)
def cnn(results: Results) -> Iterator[Finding]:
    """Does it help the classifier of a CNN that is trained with it?

    Consistent gains with features of width 256 and 512, largest where the classifier is smallest (the
    numbers are not in our text).
    """
    for features in sorted(results.frame["features"].unique()):
        own, note = results.where(features=features), f", {features} features"
        yield from above(own, "random", "dense", f"the classifier gains{note}")
        text = f"the gain is largest at the smallest width{note}"
        yield from claims(own, text, "random", at="slope", low=-math.inf, high=0)
        pairs = [("random", "dense"), ("columns", "dense")]
        kinds = ("dense", "random", "columns")
        yield from compared(own, kinds, pairs, kinds[1:], note=note)


@experiment(
    "the later edition", 8, [CORE, FACTOR, Family("overlap", ("overlap", "overlap-x4"))], ALL_REAL, trials=10
)
def overlap(results: Results) -> Iterator[Finding]:
    """Must the children's inputs be disjoint?

    Children with overlapping inputs are clearly worse (the numbers are not in our text).
    """
    pairs = [("overlap", "random"), ("overlap-x4", "random-x4")]
    for kind, other in pairs:
        for at in ("each", "mean"):
            text = f"{label(kind)} is below {label(other)}"
            yield from claims(results, text, kind, other, at, -math.inf, 0)
    kinds = ("dense", "random", "overlap", "random-x4", "overlap-x4")
    yield from compared(results, kinds, [*pairs, ("overlap", "dense")], kinds[1:])


@experiment(LATER, 9, [CORE, Family("dropped", tuple(DROPPED))], ALL_REAL, trials=10)
def dropconnect(results: Results) -> Iterator[Finding]:
    """Is it just noise on the weights?

    DropConnect at the same budget is equal or worse (the numbers are not in our text).
    """
    for kind in DROPPED:
        text = f"{label(kind)} is equal to or worse than dense"
        yield from claims(results, text, kind, "dense", "mean", -math.inf, 0, digits=2, weak=True)
        yield from above(results, "random", kind, f"random-split is above {label(kind)}", at="mean")
    kinds, pairs = ("dense", *DROPPED, "random"), [(kind, "dense") for kind in DROPPED]
    yield from compared(results, kinds, pairs, kinds[1:])


@experiment(ASKED, 7, [CORE, Family("scratch", ("scratch",))], BOTH)
def from_scratch(results: Results) -> Iterator[Finding]:
    """Is the trained parent needed, or only its masks?

    Not in the paper.
    """
    yield from above(results, "random", "scratch", "asked: expanding a parent beats its masks from scratch")
    yield from above(results, "scratch", "dense", "asked: masks from scratch are above dense", at="mean")
    pairs = [("random", "scratch"), ("scratch", "dense")]
    yield from compared(results, ("dense", "scratch", "random"), pairs, ("scratch", "random"))


@experiment(ASKED, 12, [CORE, FACTOR, COLUMNS, FEWER_INPUTS], BOTH)
def fewer_inputs(results: Results) -> Iterator[Finding]:
    """Is it better than a dense network of the same width with fewer inputs?

    Not in the paper. This is the plain rival: the same count, no masks, no parent.
    """
    for factor, x in FACTORS.items():
        ours, rivals = (f"random{x}", f"columns{x}"), tuple(f"fewer-{by}{x}" for by in FEWER)
        pairs = [(kind, rival) for kind in ours for rival in rivals]
        for kind, rival in pairs:
            yield from above(results, kind, rival, at="count")
        yield accuracies(results, ("dense", *ours, *rivals))
        yield differences(results, pairs)
        yield curves(results, (*ours, *rivals), "dense", f", α = {factor}")


@experiment(ASKED, 23, BLOCKS, BOTH)
def blocks(results: Results) -> Iterator[Finding]:
    """What do whole blocks cost or gain, and which inputs should be pruned?

    Not in the paper. With one split for all neurons of a layer and input pruning, the layer is α small dense
    blocks.
    """
    shallow, deep, gated = (
        results.where(**value) for value in ({"layers": 1}, {"layers": 4}, {"network": "gated"})
    )
    for factor, x in FACTORS.items():
        yield from _blocks(shallow, factor, x)
    yield from _deep_blocks(deep)
    yield from _gated(gated)


def _blocks(results: Results, factor: int, x: str) -> Iterator[Finding]:
    other, norm, note = f"random{x}", f"columns{x}", f", α = {factor}"
    ranked = {by: f"columns-{by}{x}" for by in RANKED}
    for kind in (norm, *ranked.values()):
        yield from close(results, kind, other)
    for by, kind in ranked.items():
        text = f"asked: ranked by {by}, input pruning is better than by norm{note}"
        yield from above(results, kind, norm, text, at="mean")
    kinds = (f"shared{x}", norm, *ranked.values())
    pairs = [(kind, other) for kind in kinds] + [(norm, kinds[0])]
    pairs += [(kind, norm) for kind in ranked.values()]
    yield from compared(results, ("dense", other, *kinds), pairs, kinds, other, note, "random-split")


def _deep_blocks(results: Results) -> Iterator[Finding]:
    kinds, note = ("random", "random-first", "columns-first"), ", 5 layers"
    why = " (the later layers are square: their inputs have too few weights to prune for their copies)"
    yield from close(results, "columns-first", "random-first", note)
    text = f"asked: expanding every second layer beats expanding the first alone{note}"
    yield from above(results, "random", "random-first", text, at="mean")
    yield accuracies(results, ("dense", *kinds), note + why)
    pairs = [("columns-first", "random-first"), ("random-first", "random"), ("columns-first", "dense")]
    yield differences(results, pairs, note)
    yield curves(results, kinds, "dense", note)


def _gated(results: Results) -> Iterator[Finding]:
    kinds, note = ("shared", "columns", "columns-activation"), ", gated"
    for kind in kinds[1:]:
        yield from close(results, kind, "random", note)
    text = f"asked: ranked by activation, input pruning is better than by norm{note}"
    yield from above(results, "columns-activation", "columns", text, at="mean")
    pairs = [*((kind, "random") for kind in kinds), ("columns-activation", "columns"), ("columns", "dense")]
    yield from compared(results, ("dense", "random", *kinds), pairs, ("random", *kinds), note=note)


@experiment(
    ASKED, 20, [replace(family, widths=(4, 8, 16)) for family in (CORE, FACTOR, SPLIT)], ("banking77",)
)
def splits(results: Results) -> Iterator[Finding]:
    """Is any split better than a random one?

    A split by features, from the Gram matrix, is only comparable to random (section 3.3); other splits are
    not in the paper.
    """
    for factor in (2, 4):
        x, note = FACTORS[factor], f", α = {factor}"
        other, control = f"random{x}", f"ahead{x}"
        kinds = [f"gram{x}", *(f"{name}{x}" for name in SPLITS)]
        for kind, rival in [*((kind, other) for kind in kinds), (f"learned{x}", control)]:
            text = f"asked: {label(kind)} is better than {label(rival)}"
            yield from above(results, kind, rival, text, at="mean")
        title = f"{note}, points above {label(other)}, mean [95 %]"
        yield by_kind(results, [*kinds, control], other, title, "split", 2)
        title = f"{note}, test accuracy in %, mean [95 %] of {len(results.values('dense'))} seeds"
        yield by_kind(results, ["dense", other, *kinds, control], None, title, "network")
        for first in range(0, len(kinds), IN_A_FIGURE):
            yield curves(results, kinds[first : first + IN_A_FIGURE], other, note, "random-split")


@experiment(ASKED, 20, [WIDE], BOTH)
def wide(results: Results) -> Iterator[Finding]:
    """Does anything remain at widths of 64 to 1024?

    Not in the paper, which ends at small widths with gains that fade.
    """
    kinds = WIDE.kinds[1:]
    yield from above(results, "random", "dense")
    pairs = [*((kind, "dense") for kind in kinds), ("random", "fewer-variance")]
    yield from compared(results, WIDE.kinds, pairs, kinds)


@experiment(ASKED, 8, [CORE, DISTILLED], BOTH)
def distil(results: Results) -> Iterator[Finding]:
    """Does it add to what a large teacher gives?

    Not in the paper.
    """
    dense, random, columns = DISTILLED.kinds
    for kind in (random, columns):
        text = f"asked: with a teacher, {label(kind.removeprefix('distilled-'))} is still above dense"
        yield from above(results, kind, dense, text, at="mean")
    yield from above(results, dense, "dense", "asked: the teacher helps the dense network", at="mean")
    yield from above(results, random, "random", "asked: the teacher helps the expanded network", at="mean")
    kinds = ("dense", dense, "random", random, "columns", columns)
    pairs = [(dense, "dense"), (random, "random"), (random, dense), (columns, dense)]
    yield from compared(results, kinds, pairs, kinds, other="")


@experiment(ASKED, 6, [CORE], BOTH)
def quantized(results: Results) -> Iterator[Finding]:
    """Does it survive rounding to 8 bits, and to 4?

    Not in the paper.
    """
    for bits in (8, 4):
        text = f"asked: random-split stays above dense with {bits}-bit weights"
        yield from above(results, "random", "dense", text, at="mean", measure=f"accuracy_int{bits}")
    columns: list[tuple[str, dict[int, str]]] = []
    drawn: dict[int, list[Finding]] = {8: [], 4: []}
    for kind in ("dense", "random", "columns"):
        accuracy = results.values(kind)
        columns.append((f"{label(kind)} %", texts(accuracy, 100, sign=False)))
        for bits, of_bits in drawn.items():
            change = 100 * (results.values(kind, f"accuracy_int{bits}") - accuracy)
            columns.append((f"{bits} bits, points", texts(change, 1, 2)))
            of_bits.append(line(kind, change))
    title = f"{results.name}, accuracy and what rounding the weights changes, mean [95 %]"
    yield by_width(title, columns)
    for bits, of_bits in drawn.items():
        title = f"{results.name}: what rounding the weights to {bits} bits changes"
        yield lines(title, AXIS, "points", of_bits, 0.0)
