"""Experiments beyond the paper's first edition: controls, rivals, and further questions.

Claims that the paper does not make begin with "asked".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fpe_reproduction.experiments.experiment import BOTH, experiment
from fpe_reproduction.experiments.findings import (
    AXIS,
    Accuracies,
    ByKind,
    Claim,
    Curves,
    Differences,
    Finding,
    Results,
    Show,
    above,
    close,
    line,
    lines,
    table,
)
from fpe_reproduction.experiments.networks import DROPPED, FEWER, RANKED, label
from fpe_reproduction.experiments.splits import SPLITS
from fpe_reproduction.experiments.tasks import Family
from fpe_reproduction.experiments.vision import COLUMNS, CORE, FACTOR
from fpe_reproduction.statistics import mean

ASKED = "further question"
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


@experiment("the later edition", 8, [CNN, replace(CNN, features=512, full_only=True)], ("fashion-mnist",))
def cnn(results: Results) -> Iterator[Finding | Show]:
    """Does it help the classifier of a CNN that is trained with it?

    Consistent gains with features of width 256 and 512, largest where the classifier is smallest (the
    numbers are not in our text).
    """
    for features in sorted(results.frame["features"].unique()):
        yield from (f for show in _cnn(features) for f in show(results.where(features=features)))


def _cnn(features: int) -> Iterator[Show]:
    note = f", {features} features"
    yield above("random", "dense", f"the classifier gains{note}")
    text = f"the gain is largest at the smallest width{note}"
    yield Claim(text, "random", at="slope", low=-math.inf, high=0)
    yield Accuracies(("dense", "random", "columns"), note)
    yield Differences([("random", "dense"), ("columns", "dense")], note)
    yield Curves(("random", "columns"), "dense", note)


@experiment("the later edition", 8, [CORE, FACTOR, Family("overlap", ("overlap", "overlap-x4"))], BOTH)
def overlap(results: Results) -> Iterator[Finding | Show]:
    """Must the children's inputs be disjoint?

    Children with overlapping inputs are clearly worse (the numbers are not in our text).
    """
    pairs = [("overlap", "random"), ("overlap-x4", "random-x4")]
    for kind, other in pairs:
        for at in ("each", "mean"):
            text = f"{label(kind)} is below {label(other)}"
            yield Claim(text, kind, other, at, -math.inf, 0)
    kinds = ("dense", "random", "overlap", "random-x4", "overlap-x4")
    yield Accuracies(kinds)
    yield Differences([*pairs, ("overlap", "dense")])
    yield Curves(kinds[1:], "dense")


@experiment("the later edition", 9, [CORE, Family("dropped", tuple(DROPPED))], BOTH)
def dropconnect(results: Results) -> Iterator[Finding | Show]:
    """Is it just noise on the weights?

    DropConnect at the same budget is equal or worse (the numbers are not in our text).
    """
    for kind in DROPPED:
        text = f"{label(kind)} is equal to or worse than dense"
        yield Claim(text, kind, "dense", "mean", -math.inf, 0, digits=2, weak=True)
        yield above("random", kind, f"random-split is above {label(kind)}", at="mean")
    yield Accuracies(("dense", *DROPPED, "random"))
    yield Differences([(kind, "dense") for kind in DROPPED])
    yield Curves((*DROPPED, "random"), "dense")


@experiment(ASKED, 7, [CORE, Family("scratch", ("scratch",))], BOTH)
def from_scratch(results: Results) -> Iterator[Finding | Show]:
    """Is the trained parent needed, or only its masks?

    Not in the paper.
    """
    yield above("random", "scratch", "asked: expanding a parent beats its masks from scratch")
    yield above("scratch", "dense", "asked: masks from scratch are above dense", at="mean")
    yield Accuracies(("dense", "scratch", "random"))
    yield Differences([("random", "scratch"), ("scratch", "dense")])
    yield Curves(("scratch", "random"), "dense")


@experiment(ASKED, 12, [CORE, FACTOR, COLUMNS, FEWER_INPUTS], BOTH)
def fewer_inputs(results: Results) -> Iterator[Finding | Show]:
    """Is it better than a dense network of the same width with fewer inputs?

    Not in the paper. This is the plain rival: the same count, no masks, no parent.
    """
    for factor, x in FACTORS.items():
        ours, rivals = (f"random{x}", f"columns{x}"), tuple(f"fewer-{by}{x}" for by in FEWER)
        pairs = [(kind, rival) for kind in ours for rival in rivals]
        for kind, rival in pairs:
            yield above(kind, rival, at="count")
        yield Accuracies(("dense", *ours, *rivals))
        yield Differences(pairs)
        yield Curves((*ours, *rivals), "dense", f", α = {factor}")


@experiment(ASKED, 23, BLOCKS, BOTH)
def blocks(results: Results) -> Iterator[Finding | Show]:
    """What do whole blocks cost or gain, and which inputs should be pruned?

    Not in the paper. With one split for all neurons of a layer and input pruning, the layer is α small dense
    blocks.
    """
    shallow, deep, gated = (
        results.where(**value) for value in ({"layers": 1}, {"layers": 4}, {"network": "gated"})
    )
    for factor, x in FACTORS.items():
        yield from (f for show in _blocks(factor, x) for f in show(shallow))
    yield from (f for show in _deep_blocks() for f in show(deep))
    yield from (f for show in _gated() for f in show(gated))


def _blocks(factor: int, x: str) -> Iterator[Show]:
    other, norm, note = f"random{x}", f"columns{x}", f", α = {factor}"
    ranked = {by: f"columns-{by}{x}" for by in RANKED}
    for kind in (norm, *ranked.values()):
        yield close(kind, other)
    for by, kind in ranked.items():
        text = f"asked: ranked by {by}, input pruning is better than by norm{note}"
        yield above(kind, norm, text, at="mean")
    kinds = (f"shared{x}", norm, *ranked.values())
    yield Accuracies(("dense", other, *kinds), note)
    pairs = [(kind, other) for kind in kinds] + [(norm, kinds[0])]
    yield Differences([*pairs, *((kind, norm) for kind in ranked.values())], note)
    yield Curves(kinds, other, note, "random-split")


def _deep_blocks() -> Iterator[Show]:
    kinds, note = ("random", "random-first", "columns-first"), ", 5 layers"
    why = " (the later layers are square: their inputs have too few weights to prune for their copies)"
    yield close("columns-first", "random-first", note)
    text = f"asked: expanding every second layer beats expanding the first alone{note}"
    yield above("random", "random-first", text, at="mean")
    yield Accuracies(("dense", *kinds), note + why)
    pairs = [("columns-first", "random-first"), ("random-first", "random"), ("columns-first", "dense")]
    yield Differences(pairs, note)
    yield Curves(kinds, "dense", note)


def _gated() -> Iterator[Show]:
    kinds, note = ("shared", "columns", "columns-activation"), ", gated"
    for kind in kinds[1:]:
        yield close(kind, "random", note)
    text = f"asked: ranked by activation, input pruning is better than by norm{note}"
    yield above("columns-activation", "columns", text, at="mean")
    yield Accuracies(("dense", "random", *kinds), note)
    pairs = [*((kind, "random") for kind in kinds), ("columns-activation", "columns"), ("columns", "dense")]
    yield Differences(pairs, note)
    yield Curves(("random", *kinds), "dense", note)


@experiment(
    ASKED, 20, [replace(family, widths=(4, 8, 16)) for family in (CORE, FACTOR, SPLIT)], ("banking77",)
)
def splits(results: Results) -> Iterator[Finding | Show]:
    """Is any split better than a random one?

    A split by features, from the Gram matrix, is only comparable to random (section 3.3); other splits are not
    in the paper.
    """
    for factor in (2, 4):
        yield from _splits(factor, FACTORS[factor])


def _splits(factor: int, x: str) -> Iterator[Show]:
    other, control, note = f"random{x}", f"ahead{x}", f", α = {factor}"
    kinds = [f"gram{x}", *(f"{name}{x}" for name in SPLITS)]
    for kind in kinds:
        yield above(kind, other, f"asked: {label(kind)} is better than {label(other)}", at="mean")
    learned = f"learned{x}"
    yield above(learned, control, f"asked: {label(learned)} is better than {label(control)}", at="mean")
    yield ByKind([*kinds, control], other, f"{note}, points above {label(other)}, mean [95 %]", "split", 2)
    title = f"{note}, test accuracy in %, mean [95 %] of {{trials}} seeds"
    yield ByKind(["dense", other, *kinds, control], None, title, "network")
    for first in range(0, len(kinds), IN_A_FIGURE):
        yield Curves(kinds[first : first + IN_A_FIGURE], other, note, "random-split")


@experiment(ASKED, 20, [WIDE], BOTH)
def wide(results: Results) -> Iterator[Finding | Show]:
    """Does anything remain at widths of 64 to 1024?

    Not in the paper, which ends at small widths with gains that fade.
    """
    kinds = WIDE.kinds[1:]
    yield above("random", "dense")
    yield Accuracies(WIDE.kinds)
    yield Differences([*((kind, "dense") for kind in kinds), ("random", "fewer-variance")])
    yield Curves(kinds, "dense")


@experiment(ASKED, 8, [CORE, DISTILLED], BOTH)
def distil(results: Results) -> Iterator[Finding | Show]:
    """Does it add to what a large teacher gives?

    Not in the paper.
    """
    dense, random, columns = DISTILLED.kinds
    for kind in (random, columns):
        text = f"asked: with a teacher, {label(kind.removeprefix('distilled-'))} is still above dense"
        yield above(kind, dense, text, at="mean")
    yield above(dense, "dense", "asked: the teacher helps the dense network", at="mean")
    yield above(random, "random", "asked: the teacher helps the expanded network", at="mean")
    kinds = ("dense", dense, "random", random, "columns", columns)
    yield Accuracies(kinds)
    yield Differences([(dense, "dense"), (random, "random"), (random, dense), (columns, dense)])
    yield Curves(kinds)


@experiment(ASKED, 6, [CORE], BOTH)
def quantized(results: Results) -> Iterator[Finding | Show]:
    """Does it survive rounding to 8 bits, and to 4?

    Not in the paper.
    """
    for bits in (8, 4):
        text = f"asked: random-split stays above dense with {bits}-bit weights"
        yield above("random", "dense", text, at="mean", measure=f"accuracy_int{bits}")
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
