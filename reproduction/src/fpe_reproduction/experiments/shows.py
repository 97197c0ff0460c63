"""What the experiments on real data show: their claims, tables and figures, declared.

Claims that the paper does not make begin with "asked".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fpe_reproduction.experiments import real
from fpe_reproduction.experiments.findings import Accuracies, ByKind, Claim, Curves, Differences, Show, Where
from fpe_reproduction.experiments.networks import (
    DROPPED,
    FEWER,
    RANKED,
    REWIRED,
    STARTS,
    TIMES,
    label,
)
from fpe_reproduction.experiments.splits import SPLITS

#: Networks are comparable, or not worse, within so many points; blocks may lose less.
COMPARABLE, CLOSE = 1.0, 0.5
#: Factors, as they stand in names of networks.
FACTORS = {2: "", 3: "-x3", 4: "-x4"}
#: Splits in one figure at most, so that their lines can be told apart.
IN_A_FIGURE = 5


def _above(kind: str, other: str, text: str = "", **how: object) -> Claim:
    return Claim(text or f"asked: {label(kind)} is above {label(other)}", kind, other, **how)  # type: ignore[arg-type]


def _comparable(kind: str, other: str, text: str) -> Claim:
    return Claim(text, kind, other, "mean", -COMPARABLE, COMPARABLE, digits=2)


def _close(kind: str, other: str, note: str = "") -> Claim:
    text = f"asked: {label(kind)} is within {CLOSE} points of {label(other)} at every width, or above{note}"
    return Claim(text, kind, other, "every", -CLOSE, digits=2)


def _cnn(features: int) -> Iterable[Show]:
    note = f", {features} features"
    yield _above("random", "dense", f"the classifier gains{note}")
    text = f"the gain is largest at the smallest width{note}"
    yield Claim(text, "random", at="slope", low=-math.inf, high=0)
    yield Accuracies(("dense", "random", "columns"), note)
    yield Differences([("random", "dense"), ("columns", "dense")], note)
    yield Curves(("random", "columns"), "dense", note)


def _overlap() -> Iterable[Show]:
    pairs = [("overlap", "random"), ("overlap-x4", "random-x4")]
    for kind, other in pairs:
        for at in ("each", "mean"):
            text = f"{label(kind)} is below {label(other)}"
            yield Claim(text, kind, other, at, -math.inf, 0)
    kinds = ("dense", "random", "overlap", "random-x4", "overlap-x4")
    yield Accuracies(kinds)
    yield Differences([*pairs, ("overlap", "dense")])
    yield Curves(kinds[1:], "dense")


def _dropconnect() -> Iterable[Show]:
    for kind in DROPPED:
        text = f"{label(kind)} is equal to or worse than dense"
        yield Claim(text, kind, "dense", "mean", -math.inf, 0, digits=2, weak=True)
        yield _above("random", kind, f"random-split is above {label(kind)}", at="mean")
    yield Accuracies(("dense", *DROPPED, "random"))
    yield Differences([(kind, "dense") for kind in DROPPED])
    yield Curves((*DROPPED, "random"), "dense")


def _fewer() -> Iterable[Show]:
    for factor, x in FACTORS.items():
        ours, rivals = (f"random{x}", f"columns{x}"), tuple(f"fewer-{by}{x}" for by in FEWER)
        pairs = [(kind, rival) for kind in ours for rival in rivals]
        for kind, rival in pairs:
            yield _above(kind, rival, at="count")
        yield Accuracies(("dense", *ours, *rivals))
        yield Differences(pairs)
        yield Curves((*ours, *rivals), "dense", f", α = {factor}")


def _blocks(factor: int, x: str) -> Iterable[Show]:
    other, norm, note = f"random{x}", f"columns{x}", f", α = {factor}"
    ranked = {by: f"columns-{by}{x}" for by in RANKED}
    for kind in (norm, *ranked.values()):
        yield _close(kind, other)
    for by, kind in ranked.items():
        text = f"asked: ranked by {by}, inputs leave better than by norm{note}"
        yield _above(kind, norm, text, at="mean")
    kinds = (f"shared{x}", norm, *ranked.values())
    yield Accuracies(("dense", other, *kinds), note)
    pairs = [(kind, other) for kind in kinds] + [(norm, kinds[0])]
    yield Differences([*pairs, *((kind, norm) for kind in ranked.values())], note)
    yield Curves(kinds, other, note, "random-split")


def _deep_blocks() -> Iterable[Show]:
    kinds, note = ("random", "random-first", "columns-first"), ", 5 layers"
    why = " (the later layers are square: what their columns hold would not pay for their copies)"
    yield _close("columns-first", "random-first", note)
    text = f"asked: expanding every second layer beats expanding the first alone{note}"
    yield _above("random", "random-first", text, at="mean")
    yield Accuracies(("dense", *kinds), note + why)
    pairs = [("columns-first", "random-first"), ("random-first", "random"), ("columns-first", "dense")]
    yield Differences(pairs, note)
    yield Curves(kinds, "dense", note)


def _gated() -> Iterable[Show]:
    kinds, note = ("shared", "columns", "columns-activation"), ", gated"
    for kind in kinds[1:]:
        yield _close(kind, "random", note)
    text = f"asked: ranked by activation, inputs leave better than by norm{note}"
    yield _above("columns-activation", "columns", text, at="mean")
    yield Accuracies(("dense", "random", *kinds), note)
    pairs = [*((kind, "random") for kind in kinds), ("columns-activation", "columns"), ("columns", "dense")]
    yield Differences(pairs, note)
    yield Curves(("random", *kinds), "dense", note)


def _splits(factor: int, x: str) -> Iterable[Show]:
    other, control, note = f"random{x}", f"ahead{x}", f", α = {factor}"
    kinds = [f"gram{x}", *(f"{name}{x}" for name in SPLITS)]
    for kind in kinds:
        yield _above(kind, other, f"asked: {label(kind)} is better than {label(other)}", at="mean")
    learned = f"learned{x}"
    yield _above(learned, control, f"asked: {label(learned)} is better than {label(control)}", at="mean")
    yield ByKind([*kinds, control], other, f"{note}, points above {label(other)}, mean [95 %]", "split", 2)
    title = f"{note}, test accuracy in %, mean [95 %] of {{trials}} seeds"
    yield ByKind(["dense", other, *kinds, control], None, title, "network")
    for first in range(0, len(kinds), IN_A_FIGURE):
        yield Curves(kinds[first : first + IN_A_FIGURE], other, note, "random-split")


VISION: list[Show] = [
    _above("random", "dense", "random-split is above dense", at=2),
    _above("gram", "dense", "gram-split is above dense", at=2),
    _above("random", "dense", "random-split is above dense across widths", at="mean"),
    _above("gram", "dense", "gram-split is above dense across widths", at="mean"),
    _comparable("gram", "random", "gram-split is only comparable to random-split"),
    Claim(
        "the relative improvement is most pronounced where neurons are few",
        "random",
        "dense",
        "slope",
        -math.inf,
        0,
    ),
    Accuracies(("dense", "gram", "random", "restart", "shared", "columns")),
    Differences([("random", "dense"), ("gram", "dense"), ("gram", "random"), ("restart", "dense")]),
    real.gains,
    Curves(("dense", "gram", "random")),
    Curves(("gram", "random", "restart"), "dense"),
]
EQUIVALENT: list[Show] = [real.equivalent, Accuracies(("dense", "random")), Curves(("dense", "random"))]
TIMING: list[Show] = [
    _above("random-at-10", "random-at-90", "an early split is better than a late one", at="mean"),
    _above("random-at-10", "random", "a split at 10 % is better than at 50 %", at="mean"),
    _above("random-at-90", "dense", "even the latest split is above dense", at="mean"),
    _above("random-at-10", "random-at-90", "early is at least as good as late", low=-COMPARABLE),
    Accuracies(("dense", *sorted([*TIMES, "random"], key=real.share_before))),
    Differences([(kind, "random-at-90") for kind in ("random-at-0", "random-at-10", "random")]),
    real.timing,
]
INTERFERENCE: list[Show] = [
    *(
        Claim(
            f"{label(kind)} neurons are less alike than dense ones",
            kind,
            high=0,
            low=-math.inf,
            measure="cosine",
        )
        for kind in ("random", "random-x4")
    ),
    real.interference,
]
_BY_FACTOR = ("random", "random-x3", "random-x4", "random-x8")
FACTOR: list[Show] = [
    *(_above(kind, "dense", "every factor gains where the network is small", at=1) for kind in _BY_FACTOR),
    real.spread,
    Accuracies(("dense", "restart", *_BY_FACTOR)),
    Accuracies(("shared", "columns", "columns-x3", "columns-x4")),
    Curves(("restart", *_BY_FACTOR), "dense"),
    Curves(("columns", "columns-x3", "columns-x4"), "dense", ", whole columns"),
]
DEPTH: list[Show] = [real.depth]
IMAGENET: list[Show] = [
    _above("random", "dense", "expanded is above dense at every width"),
    real.imagenet,
    Curves(("dense", "random")),
    Curves(("random",), "dense"),
]
DYNAMIC_MASKS: list[Show] = [
    real.dynamic,
    Accuracies(("dense", "random", *REWIRED)),
    Differences([(kind, "random") for kind in REWIRED]),
    Curves(tuple(REWIRED), "random", other_label="one-shot random"),
]
TWO_FOUR: list[Show] = [
    _comparable("two-four", "random", "2:4 is within a point of random (−0.25 points)"),
    _above("two-four", "dense", "2:4 is above dense (+7.78 points)", at="mean", size=7.78),
    Accuracies(("dense", "two-four", "random")),
    Differences([("two-four", "dense"), ("random", "dense"), ("two-four", "random")]),
    Curves(("two-four", "random"), "dense"),
]
CNN: list[Show] = [Where("features", features, list(_cnn(features))) for features in (256, 512)]
OVERLAP = list(_overlap())
DROPCONNECT = list(_dropconnect())
FROM_SCRATCH: list[Show] = [
    _above("random", "scratch", "asked: expanding a parent beats its masks from scratch"),
    _above("scratch", "dense", "asked: masks from scratch are above dense", at="mean"),
    Accuracies(("dense", "scratch", "random")),
    Differences([("random", "scratch"), ("scratch", "dense")]),
    Curves(("scratch", "random"), "dense"),
]
FEWER_INPUTS = list(_fewer())
BLOCKS: list[Show] = [
    Where("layers", 1, [show for factor, x in FACTORS.items() for show in _blocks(factor, x)]),
    Where("layers", 4, list(_deep_blocks())),
    Where("network", "gated", list(_gated())),
]
SPLIT: list[Show] = [show for factor in (2, 4) for show in _splits(factor, FACTORS[factor])]
_WIDE = ("random", "columns", "fewer-variance")
WIDE: list[Show] = [
    _above("random", "dense"),
    Accuracies(("dense", *_WIDE)),
    Differences([*((kind, "dense") for kind in _WIDE), ("random", "fewer-variance")]),
    Curves(_WIDE, "dense"),
]
_DISTILLED = ("dense", "distilled-dense", "random", "distilled-random", "columns", "distilled-columns")
DISTIL: list[Show] = [
    *(
        _above(
            f"distilled-{kind}",
            "distilled-dense",
            f"asked: with a teacher, {label(kind)} is still above dense",
            at="mean",
        )
        for kind in ("random", "columns")
    ),
    _above("distilled-dense", "dense", "asked: the teacher helps the dense network", at="mean"),
    _above("distilled-random", "random", "asked: the teacher helps the expanded network", at="mean"),
    Accuracies(_DISTILLED),
    Differences(
        [
            ("distilled-dense", "dense"),
            ("distilled-random", "random"),
            ("distilled-random", "distilled-dense"),
            ("distilled-columns", "distilled-dense"),
        ]
    ),
    Curves(_DISTILLED),
]
QUANTIZED: list[Show] = [
    *(
        _above(
            "random",
            "dense",
            f"asked: random-split stays above dense with {bits}-bit weights",
            at="mean",
            measure=f"accuracy_int{bits}",
        )
        for bits in (8, 4)
    ),
    real.rounding,
]
MOVED = ("moved", "moved-kept", "moved-blocks", "moved-blocks-x6", "still", "rigl", "rigl-erk")
RIVALS = [kind for by in ("variance", "random") for kind in FEWER[by]]
CHOICES: list[Show] = [
    real.choices,
    Differences(
        [*((kind, "start-copied") for kind in STARTS if kind != "start-copied"), ("start-copied", "dense")],
        ", starts",
    ),
    Curves(("dense", "rigl", "moved", "dense-x2")),
]
REWIRING: list[Show] = [
    real.rewiring,
    *(_above("moved", other) for other in ("random", "still", "rigl", "rigl-erk")),
    Accuracies(("dense", "random", *MOVED, "dense-x2", "steady", "steady-x2")),
    Accuracies(RIVALS, ", the plain rival"),
]
