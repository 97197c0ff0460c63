"""All networks that the experiments on real data compare, each declared once, with its label beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from fpe.expansion.pruning import InputPruning
from fpe.expansion.splits import SharedSplit
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.schedule import RewiringSchedule
from fpe_reproduction.experiments.kinds import (
    ACCUMULATED,
    CHOSEN,
    Doubled,
    Dynamic,
    Expanded,
    FewerInputs,
    FromScratch,
    Kind,
    Overlapping,
)
from fpe_reproduction.experiments.splits import SPLITS

#: When RigL's masks change, and policies that rewire whole inputs.
RIGL = RewiringSchedule(every=50, until=0.75)
INPUTS = replace(ACCUMULATED, unit="column")
INPUTS_BY_MOVEMENT = replace(INPUTS, drop="movement")


def _by_factor(
    name: str,
    label: str,
    factors: Sequence[int],
    make: Callable[..., Kind] = Expanded,
    sign: str = "α = ",
    **how: Any,
) -> dict[str, Kind]:
    """Declare the same network at several factors; 2 is the usual one and not named."""
    return {
        f"{name}-x{f}" if f > 2 else name: make(f"{label}, {sign}{f}" if f > 2 else label, f, **how)
        for f in factors
    }


def _merged(families: Iterable[dict[str, Kind]]) -> dict[str, Kind]:
    return {name: kind for family in families for name, kind in family.items()}


def _inputs(label: str, factor: int = 3, groups: int = 1, policy: RewiringPolicy | None = INPUTS) -> Dynamic:
    """Declare dense blocks, `groups` times `factor` of them, whose inputs are rewired."""
    return Dynamic(label, factor, split=SharedSplit(groups), prune="columns", policy=policy)


#: Networks with dynamic masks, and what they are compared with. The first is the chosen one.
DYNAMIC: dict[str, Dynamic] = {
    "moved": Dynamic("rewired"),
    **{f"moved-x{factor}": Dynamic(f"rewired, α = {factor}", factor) for factor in (2, 3, 6, 8)},
    "moved-columns": _inputs("columns rewired"),
    **{f"moved-columns-x{factor}": _inputs(f"columns rewired, α = {factor}", factor) for factor in (2, 4, 6)},
    "moved-columns-movement": _inputs("columns rewired by |weight × gradient|", policy=INPUTS_BY_MOVEMENT),
    "moved-blocks": _inputs("blocks of 8 groups rewired", 3, 8, INPUTS_BY_MOVEMENT),
    "moved-blocks-x6": _inputs("blocks of 8 groups rewired, α = 6", 6, 8, INPUTS_BY_MOVEMENT),
    "moved-blocks-magnitude": _inputs("blocks of 8 groups rewired by magnitude", 3, 8),
    "moved-blocks-4": _inputs("blocks of 4 groups rewired", 3, 4, INPUTS_BY_MOVEMENT),
    "still": Dynamic("not rewired", policy=None),
    "still-columns": _inputs("columns, not rewired", policy=None),
    "rigl": Dynamic("RigL from scratch", begin="uniform", policy=RewiringPolicy(), schedule=RIGL),
    "rigl-erk": Dynamic("RigL from scratch, ERK", begin="erk", policy=RewiringPolicy(), schedule=RIGL),
    "moved-uniform": Dynamic("from scratch, one density", begin="uniform"),
    "moved-set": Dynamic("random growth", policy=RewiringPolicy(grow="random")),
    "moved-gradient": Dynamic("growth by one gradient", policy=RewiringPolicy()),
    "moved-momentum": Dynamic("growth by momentum", policy=RewiringPolicy(grow="momentum")),
    "moved-movement": Dynamic("drop by |weight × gradient|", policy=replace(ACCUMULATED, drop="movement")),
    "moved-network": Dynamic("count of the network", policy=replace(ACCUMULATED, scope="network")),
    "moved-kept": Dynamic("children stay disjoint", policy=replace(ACCUMULATED, partition="kept")),
    **{
        f"moved-every-{n}": Dynamic(f"every {n} steps", schedule=replace(CHOSEN, every=n))
        for n in (25, 50, 200)
    },
    **{
        f"moved-share-{n}": Dynamic(f"share {n} %", schedule=replace(CHOSEN, share=n / 100)) for n in (10, 50)
    },
    "moved-until-75": Dynamic("until 75 %", schedule=replace(CHOSEN, until=0.75)),
    "moved-copied": Dynamic("children as split", reinitialized=False),
    "moved-divided": Dynamic("children as split, outgoing / α", reinitialized=False, outgoing="divided"),
    "moved-joint": Dynamic("pruned jointly", prune="magnitude"),
    **{
        f"moved-at-{share}": Dynamic(f"expanded at {share} %", at=share / 100, reinitialized=False)
        for share in (10, 25, 50)
    },
    "moved-at-50-joint": Dynamic(
        "expanded at 50 %, pruned jointly", at=0.5, reinitialized=False, prune="magnitude"
    ),
}
#: The paper's expansion with different outgoing weights.
STARTS: dict[str, Kind] = {
    "start-copied": Expanded("one-shot, outgoing weights copied"),
    "start-divided": Expanded("one-shot, outgoing weights / α", outgoing="divided"),
    "start-corrected": Expanded("one-shot, outgoing weights by least squares", outgoing="corrected"),
}
#: Dense networks without masks that have fewer inputs, by how these are chosen.
FEWER: dict[str, dict[str, Kind]] = {
    by: _by_factor(
        f"fewer-{by}", f"fewer inputs by {by}", (2, 3, 4), FewerInputs, "×", by=by, needs_warm=by == "norm"
    )
    for by in ("variance", "random", "norm")
}
#: The paper's dynamic masks, by the share of the weights rewired at random after each epoch.
REWIRED: dict[str, Kind] = {
    f"rewired-{share}": Expanded(f"{share} % rewired", rewired=share / 100) for share in (5, 10, 20, 30)
}
DROPPED: dict[str, Kind] = {
    f"dropconnect-{rate}": Kind(f"DropConnect {rate} %", at=None, continues=True, dropped=rate / 100)
    for rate in (10, 25, 50)
}
#: Random splits by the share of the training before them, in per cent; the usual one is at 50.
TIMES: dict[str, Kind] = {
    f"random-at-{share}": Expanded(f"split at {share} %", at=share / 100) for share in (0, 10, 25, 75, 90)
}
#: Whole inputs, ranked in other ways than by the norm of their weights.
RANKED: dict[str, dict[str, Kind]] = {
    by: _by_factor(
        f"columns-{by}", f"shared, columns by {by}", (2, 3, 4), split="shared", prune=InputPruning(by)
    )
    for by in ("activation", "gradient")
}

#: All networks by their name in stored results.
KINDS: dict[str, Kind] = {
    "dense": Kind("dense", 1, continues=True),
    "dense-x2": Doubled("dense, twice the count"),
    "steady": Doubled("dense, rate 0.003", 1, lr=3e-3),
    "steady-x2": Doubled("twice the count, rate 0.003", lr=3e-3),
    "restart": Expanded("dense, new optimizer", 1),
    **_by_factor("random", "random-split", (2, 3, 4, 8)),
    "gram": Expanded("gram-split", split="gram"),
    "two-four": Expanded("2:4-split", split="2:4"),
    **_by_factor("shared", "shared split", (2, 3, 4), split="shared"),
    **_by_factor("columns", "shared, columns", (2, 3, 4), split="shared", prune="columns"),
    **_merged(RANKED.values()),
    **_merged(_by_factor(name, label, (2, 4), split=name) for name, (label, _) in SPLITS.items()),
    **_by_factor("ahead", "random-split, extra steps", (2, 4), ahead=True),
    "random-first": Expanded("random-split, first layer", layers=("0",)),
    "columns-first": Expanded("shared, columns, first layer", split="shared", prune="columns", layers=("0",)),
    **TIMES,
    **_by_factor("overlap", "overlapping", (2, 4), Overlapping),
    "scratch": FromScratch("masks from scratch"),
    **_merged(FEWER.values()),
    **REWIRED,
    **DROPPED,
    **DYNAMIC,
    **STARTS,
    "distilled-dense": Kind("dense, distilled", at=None, continues=True, distilled=True),
    "distilled-random": Expanded("random-split, distilled", at=None, distilled=True),
    "distilled-columns": Expanded(
        "shared, columns, distilled", at=None, distilled=True, split="shared", prune="columns"
    ),
}

_LABELS = {"clause": "clause-split", "formula": "exact formula"}


def label(kind: str) -> str:
    """Return the label of a kind in tables and figures; ``width-N``, ``depth-N``: N neurons, N layers."""
    if kind in KINDS:
        return KINDS[kind].label
    word, _, number = kind.partition("-")
    return _LABELS.get(kind) or f"{number} {'neurons' if word == 'width' else 'layers'}"
