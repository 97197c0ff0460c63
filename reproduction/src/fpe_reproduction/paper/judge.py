"""The paper, sentence by sentence: what a sentence is, and the verdict on it.

A sentence has one or more estimates, each with an interval. It *agrees* if all of them lie between two
bounds, the margin; in size, too, if the paper gives sizes and every interval includes its own and is no wider
than that. It is *contradicted* if one of them lies wholly outside. Some sentences allow a number of
exceptions. All p-values of a family are corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fpe_reproduction.experiments.findings import Finding, Results, corrected, judged, verdict
from fpe_reproduction.paper.measures import Estimates, Measure, shallow
from fpe_reproduction.statistics import Interval

#: Data by name. The first are Boolean formulas.
TITLES = {"": "", "fashion-mnist": "Fashion-MNIST", "banking77": "Banking77", "cifar100": "CIFAR-100"}
CLASSES = {"fashion-mnist": 10, "banking77": 77, "cifar100": 100}
POINTS = (100.0, 1, " points")
#: More estimates than these are not written out.
MANY = 4


@dataclass(frozen=True)
class Sentence:
    """A sentence of the paper that can be measured."""

    family: str  # p-values are corrected within it
    where: str  # in the paper
    text: str
    measure: Measure  # from the networks of one data set
    data: tuple[str, ...] = ("",)
    low: float = 0.0  # the margin
    high: float = math.inf
    #: The paper's sizes, by the estimates' names.
    sizes: Mapping[str, float] = field(default_factory=dict)
    form: tuple[float, int, str] = POINTS  # scale, digits and unit in which estimates are printed
    exceptions: int = 0  # estimates that may lie anywhere
    #: Of which networks the dense ones are counted that learned nothing.
    among: Callable[[Results], Results] = shallow


def judge(sentences: Iterable[Sentence], results: Mapping[str, Results]) -> list[Finding]:
    """Judge sentences by the networks of each data set; those without networks are left out.

    Returns
    -------
    list of dict
        As by `judged`, with ``family``, ``where``, ``margin``, ``estimates`` and ``collapsed``, the number
        of dense networks that are no better than twice as good as guessing.
    """
    found: dict[str, list[Finding]] = {}
    for own in sentences:
        estimates: dict[str, Interval] = {}
        for name in own.data:
            if name in results:
                measured = own.measure(results[name])
                prefix = f"{TITLES[name]}, " if len(own.data) > 1 else ""
                estimates |= {f"{prefix}{key}": value for key, value in measured.items()}
        if estimates:
            found.setdefault(own.family, []).append(_judged(own, estimates, results))
    return [claim for family in found.values() for claim in corrected(family)]


def networks(results: Iterable[Mapping[str, Any]]) -> dict[str, Results]:
    """Return the networks of experiments, as `fpe_reproduction.experiments.reproduce` gives them, by data."""
    found = list(results)
    rows = [{"data": "", **row} for result in found for row in result["values"]]
    return by_data(pd.DataFrame(rows), any(result["quick"] for result in found))


def by_data(frame: pd.DataFrame, quick: bool = False) -> dict[str, Results]:
    """Divide a table of networks, a row each, by the column ``data``."""
    return {
        name: Results.of(
            name, own.dropna(axis=1, how="all").to_dict("records"), "hidden" if name else "neurons", quick
        )
        for name, own in frame.groupby("data", sort=False)
        if name in TITLES
    }


def to_frame(claims: Iterable[Finding]) -> pd.DataFrame:
    """Lay claims out as a table: a row for each, with its verdict."""
    keys = {"family": "family", "where": "where", "paper": "the paper says", "ours": "we measured"}
    rows = [
        {
            **{title: claim[key] for key, title in keys.items()},
            "margin": claim["margin"],
            "verdict": verdict(claim),
            "p": claim["p"],
            "p_false": claim["p_false"],
            "detectable": claim["detectable"],
            "collapsed": claim["collapsed"],
        }
        for claim in claims
    ]
    return pd.DataFrame(rows)


def _judged(own: Sentence, estimates: Estimates, results: Mapping[str, Results]) -> Finding:
    # The estimates farthest from being shown are the exceptions; the factor is that of a partial conjunction
    # (Benjamini and Heller, 2008), since the data choose them.
    ranked = sorted(estimates, key=lambda key: _p(own, estimates[key]))
    counted = {key: estimates[key] for key in ranked[: max(1, len(ranked) - own.exceptions)]}
    claim = judged(
        own.text, _shown(own, estimates, ranked[len(counted) - 1]), counted.values(), own.low, own.high
    )
    claim["p"] = min(1.0, (1 + own.exceptions) * claim["p"])
    if own.sizes:
        sized = [(estimates[key], size) for key, size in own.sizes.items() if key in estimates]
        claim["in_size"] = bool(sized) and all(_confirms(value, size) for value, size in sized)
    collapsed = [
        count_collapsed(name, own.among(results[name])) for name in own.data if name in results and name
    ]
    return {
        "family": own.family,
        "where": own.where,
        "margin": margin(own),
        **claim,
        "estimates": {
            key: [value.value, value.low, value.high, value.df] for key, value in estimates.items()
        },
        "bounds": [own.low, own.high],
        "scale": own.form[0],
        "sizes": dict(own.sizes),
        "collapsed": sum(collapsed) if collapsed else None,
    }


def _confirms(estimate: Interval, size: float) -> bool:
    """Tell whether an interval includes a size, and is narrow enough to say so: its width is that at most."""
    return estimate.low <= size <= estimate.high and estimate.high - estimate.low <= abs(size)


def _shown(own: Sentence, estimates: Estimates, weakest: str) -> str:
    """Write estimates; of many, the weakest that counts."""
    scale, digits, unit = own.form
    texts = {key: f"{key}: {value.text(scale, digits)}" for key, value in estimates.items()}
    if len(texts) > MANY:
        which = "the weakest but one" if own.exceptions else "the weakest"
        return f"{len(texts)} estimates, {which} at {texts[weakest]}{unit}"
    return "; ".join(texts.values()) + unit


def _p(own: Sentence, estimate: Interval) -> float:
    return max(estimate.p_below(own.low), estimate.p_above(own.high))


def margin(own: Sentence) -> str:
    """Say between which bounds the estimates must lie."""
    scale, _, unit = own.form
    low, high = (f"{scale * bound:g}" for bound in (own.low, own.high))
    if math.isinf(own.high):
        text = f"above {low}"
    elif math.isinf(own.low):
        text = f"below {high}"
    else:
        text = f"between {low} and {high}"
    return f"{text}{unit}{', but one' if own.exceptions else ''}"


def count_collapsed(name: str, results: Results) -> int:
    """Count the dense networks that are at most twice as good as guessing."""
    dense = results.frame[results.frame["kind"] == "dense"]
    return int((dense["accuracy"] < 2 / CLASSES[name]).sum())
