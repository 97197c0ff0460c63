"""What the paper says, and what stored networks show, a second time: by pandas, numpy and scipy alone."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from evidence import interval, left_out

#: The paper's data.
TITLES = {"fashion-mnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}
#: Table A3: relative improvement in per cent, by layers and neurons.
DEPTH = {
    5: {4: 28, 8: 2.6, 12: 0.4, 16: 0.2},
    7: {4: 34, 8: 11, 12: 1.1, 16: 0.8},
    9: {4: 104, 8: 8.7, 12: 2.0, 16: 1.4},
}
#: Formulas that are simulated: clauses, literals, neurons, factor.
SIMULATED = (
    (3, 4, 8, 2), (8, 4, 8, 2), (16, 4, 8, 2), (32, 4, 8, 2), (8, 2, 8, 2), (8, 2, 8, 4), (8, 3, 16, 2),
    (8, 4, 48, 2), (32, 4, 64, 2),
)  # fmt: skip
#: The paper's numbers of neurons and of clauses.
PLACES = {"neurons": (4, 6, 8, 12, 16, 24, 32), "clauses": (3, 6, 8, 10, 15, 20, 25, 32)}
#: Scale and unit of what is printed.
POINTS, GAIN, PLAIN, PERCENT, TIMES = (
    (100, " points"), (100, " % of relative improvement"), (1, ""), (100, " %"), (1, " times"),
)  # fmt: skip
UP, DOWN = (0, math.inf), (-math.inf, 0)


class Said(NamedTuple):
    """A sentence: its page, its words, its estimates (value, low, high, degrees of freedom), its margin."""

    page: str
    text: str
    estimates: dict
    margin: tuple = UP
    form: tuple = POINTS
    size: float | None = None  # the paper's
    exceptions: int = 0
    among: dict | None = None  # by data, networks of which the dense ones are counted that learned nothing


def networks(path):
    """Return the stored networks, with the improvement relative to the dense network of the same trial."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)
    frame["data"] = frame["data"].fillna("")
    frame["width"] = frame["neurons"].where(frame["data"] == "", frame["hidden"])
    keys = ["data", "width", "clauses", "layers", "network", "features", "trial"]
    keys = [key for key in keys if key in frame]
    frame = frame.drop_duplicates([*keys, "kind"], keep="last")
    dense = frame["accuracy"].where(frame["kind"] == "dense")
    parent = dense.groupby([frame[key] for key in keys], dropna=False).transform("max")
    frame["gain"] = frame["accuracy"] / parent.where(parent != 0) - 1
    return frame


def values(own, place, kind, measure="accuracy"):
    """Return a measure of a kind of networks, trials × places."""
    return own[own["kind"] == kind].set_index(["trial", place])[measure].unstack()


def complete(own, place):
    """Return the paper's places, and the trials with all of these."""
    own = own[own[place].isin(PLACES[place])]
    return own[own["trial"].isin(values(own, place, "dense").dropna().index)]


def by_t(own):
    own = own.dropna()
    return *interval(own), len(own) - 1


def by_jackknife(estimate, trials):
    return *left_out(estimate, list(trials)), len(trials) - 1


def relative(own, other):
    """Return by how much the mean of one series is larger than that of another of the same trials."""
    both = pd.DataFrame({"own": own, "other": other}).dropna()
    means = lambda trials: both.loc[trials].mean()  # noqa: E731
    return by_jackknife(lambda trials: means(trials).own / means(trials).other - 1, both.index)


def share(outcomes):
    """Return the share of outcomes that are true, with the interval of Clopper and Pearson."""
    n, k = len(outcomes), int(outcomes.sum())
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return k / n, low, high, math.inf


def at_each(apart, unit="neurons"):
    return {f"{place:g} {unit}": by_t(apart[place]) for place in apart.dropna(how="all", axis=1)}


def doublings(gains):
    """Return the slope over the logarithm of the place, in the mean over trials."""
    slopes = [
        np.polyfit(np.log2(r.dropna().index.to_numpy(float)), r.dropna(), 1)[0] for _, r in gains.iterrows()
    ]
    return {"each doubling": by_t(pd.Series(slopes))}


def slope(x, y, within, strength=False):
    """Return the slope of y over x, each trials × places, or Pearson's correlation.

    `within` places, from their means.
    """

    def estimate(trials):
        pair = (own.loc[trials] - (own.loc[trials].mean() if within else 0) for own in (x, y))
        x_of, y_of = (own.to_numpy().ravel() for own in pair)
        return stats.pearsonr(x_of, y_of).statistic if strength else np.polyfit(x_of, y_of, 1)[0]

    return by_jackknife(estimate, x.index)


def formulas(frame):
    """Yield what is said of Boolean formulas."""
    own = frame[frame["data"] == ""]
    case = partial(values, own[(own["clauses"] == 8) & (own["neurons"] == 8)], "neurons")
    page = "case-study"
    for kind, other, points in (
        ("random", "dense", 10.0),
        ("clause", "dense", 20.7),
        ("clause", "random", 10.7),
    ):
        text = f"{kind}-split is {points} points above {other}{'-split' * (other != 'dense')}"
        yield Said(page, text, {"difference": by_t((case(kind) - case(other))[8])}, size=points / 100)
    near = share((case("random") > case("clause") - 0.02)[8])
    yield Said(
        page, "random-split can often nearly match clause-split", {"share": near}, (0.5, math.inf), PERCENT
    )
    for text, kind, other, margin in (
        ("the Gram matrix of clause-split is more block-diagonal than that of dense", "clause", "dense", UP),
        (
            "that of random-split has a weaker diagonal structure than that of clause-split",
            "random",
            "clause",
            DOWN,
        ),
    ):
        apart = (case(kind, "block_share") - case(other, "block_share"))[8]
        yield Said(page, text, {"difference": by_t(apart)}, margin, PLAIN)

    page = "neurons-and-clauses"
    fixed = {"neurons": own[own["clauses"] == 8], "clauses": own[own["neurons"] == 8]}
    by = {place: partial(values, complete(some, place), place) for place, some in fixed.items()}
    for kind in ("clause", "random"):
        text = f"the gain of {kind}-split shrinks with more neurons"
        yield Said(page, text, doublings(by["neurons"](kind, "gain")), DOWN, GAIN)
        gains = by["clauses"](kind, "gain")
        text = f"with more clauses the gain of {kind}-split rises at first"
        yield Said(page, text, doublings(gains.loc[:, :8]), UP, GAIN)
        text = f"beyond roughly 16 clauses the gain of {kind}-split levels off or declines"
        yield Said(page, text, doublings(gains.loc[:, 15:]), (-math.inf, 0.01), GAIN)
        text = f"with fewer clauses {kind}-split gains less, at 8 to 16 neurons"
        yield Said(page, text, more_clauses(own, kind, 8, 4), UP, GAIN)
    text = "with 8 to 16 neurons the gain of clause-split levels off from 12 clauses on"
    yield Said(page, text, more_clauses(own, "clause", 24, 12), (-math.inf, 0.01), GAIN)
    for place in by:
        text = f"clause-split is above random-split at every number of {place}"
        yield Said(page, text, at_each(by[place]("clause") - by[place]("random"), place))
    often = (by["neurons"]("random") > by["neurons"]("dense")).mean(axis=1)
    yield Said(page, "random-split is often above dense", {"share": by_t(often)}, (0.5, math.inf), PERCENT)

    page = "interference"

    def apart(place, kind, measure):
        return by[place](kind, measure) - by[place]("dense", measure)

    for kind in ("clause", "random"):
        for place in by:
            text = f"the capacity of clauses is above dense in {kind}-split, at every number of {place}"
            yield Said(page, text, at_each(apart(place, kind, "clause_capacity"), place), UP, PLAIN)
        fold = by["neurons"](kind, "clause_capacity") / by["neurons"]("dense", "clause_capacity")
        text = f"the capacity of clauses rises most where neurons are few, in {kind}-split"
        yield Said(page, text, doublings(fold), DOWN, GAIN)
        fold = by["clauses"](kind, "clause_capacity") / by["clauses"]("dense", "clause_capacity")
        text = f"with more clauses the capacity of clauses rises more, in {kind}-split"
        yield Said(page, text, doublings(fold), UP, GAIN)
        both = {
            **at_each(apart("neurons", kind, "cosine")),
            **at_each(apart("clauses", kind, "cosine"), "clauses"),
        }
        del both["8 clauses"]
        text = f"the mean cosine similarity is lower in {kind}-split than in dense, in all settings but one"
        yield Said(page, text, both, DOWN, PLAIN, exceptions=1)
    for measure, words in (("clause_capacity", "capacity of the clauses"), ("cosine", "cosine similarity")):
        ratios = {}
        for fixed, place in (("8 clauses", "neurons"), ("8 neurons", "clauses")):
            a, b = (apart(place, kind, measure).mean(axis=1) for kind in ("random", "clause"))
            ratios[fixed] = by_jackknife(lambda s, a=a, b=b: a[s].sum() / b[s].sum(), a.index)
        text = f"random-split changes the {words} much as clause-split does"
        yield Said(page, text, ratios, (2 / 3, 1.5), TIMES)
    page = "interference-and-accuracy"
    for note, within, strength in (
        ("", False, False),
        (": the correlation is strong", False, True),
        (", among networks of one width", True, False),
    ):
        for measure, words, margin in (
            ("clause_capacity", "the capacity of the clauses rises", UP),
            ("cosine", "the cosine similarity falls", DOWN),
        ):
            slopes = {}
            for kind, name in (("clause", "split by clauses"), ("random", "split at random")):
                x, dense = by["neurons"](kind, measure), by["neurons"]("dense", measure)
                x = x / dense if margin == UP else x - dense
                slopes[name] = slope(x, by["neurons"](kind, "gain"), within, strength)
            if strength:
                margin = (0.5, math.inf) if margin == UP else (-math.inf, -0.5)
            yield Said(
                page, f"accuracy improves where {words}{note}", slopes, margin, PLAIN if strength else GAIN
            )
    for measure, words in (("clause_capacity", "capacity of the clauses"), ("cosine", "cosine similarity")):
        text = f"most of the change of the {words} is there in a dense network that is only masked"
        dense, shares = by["neurons"]("dense", measure), {}
        for kind, name in (("clause", "split by clauses"), ("random", "split at random")):
            a, b = (by["neurons"](kind, own) - dense for own in (f"{measure}_masked", measure))
            shares[name] = by_jackknife(
                lambda s, a=a, b=b: a.loc[s].sum().sum() / b.loc[s].sum().sum(), a.index
            )
        yield Said(page, text, shares, (0.5, math.inf), TIMES)

    covered = by["clauses"]("random", "covered_clauses")
    shares = {f"{c:g} clauses": share(covered[c] == c) for c in covered}
    text = "with the 8 neurons of its experiments, random expansion covers all clauses with high probability"
    yield Said("theory", text, shares, (0.9, math.inf), PERCENT)


def more_clauses(own, kind, more, fewer):
    own = own[(own["kind"] == kind) & own["neurons"].isin((8, 12, 16))]
    wide = own.set_index(["trial", "neurons", "clauses"])["gain"].unstack()
    return {f"{more} against {fewer} clauses": by_t((wide[more] - wide[fewer]).groupby("trial").mean())}


def simulated(drawn):
    """Yield what is said of sparse neurons that are drawn at random, `drawn` networks of them."""
    stated, about, together, rarer, bound, enough = {}, {}, {}, {}, {}, {}
    for numbers in SIMULATED:
        count, literals, hidden, factor = numbers
        n, neurons = count * literals, factor * hidden
        rng, covers = np.random.default_rng(0), []
        at_once = max(1, 2**22 // (n * neurons))
        for many in np.diff([*range(0, drawn, at_once), drawn]):
            inputs = rng.permuted(np.tile(np.arange(n) < n // factor, (many * neurons, 1)), axis=1)
            covers.append(np.logical_and.reduceat(inputs, range(0, n, literals), axis=1))
        covers = np.concatenate(covers).reshape(drawn, neurons, count)
        exact = has_all(n, factor, literals)
        seen = covers.sum(axis=2)
        pairs = (seen * (seen - 1) / 2).sum(axis=1) / (hidden * math.comb(count, 2))
        both = factor * has_all(n, factor, 2 * literals)
        name = "C, k, H, α = " + ", ".join(map(str, numbers))
        for found, shares, formula in (
            (stated, covers.mean(axis=(1, 2)), exact),
            (about, covers.mean(axis=(1, 2)), factor**-literals if n >= 128 else 0),
            (together, pairs, both),
            (rarer, pairs, factor ** (1 - 2 * literals) if n >= 128 else 0),
        ):
            if formula:
                half = stats.norm.ppf(0.975) * shares.std(ddof=1) / drawn**0.5
                mean = shares.mean() / formula - 1
                found[name] = mean, mean - half / formula, mean + half / formula, math.inf
        missed = ~covers.any(axis=1).all(axis=1)
        half = stats.norm.ppf(0.975) * missed.std(ddof=1) / drawn**0.5
        allowed = count * (1 - exact) ** neurons
        if allowed < 1:
            mean = missed.mean() - allowed
            bound[name] = mean, mean - half, mean + half, math.inf
        if neurons * exact >= math.log(10 * count):
            mean = 1 - missed.mean()
            enough[name] = mean, mean - half, mean + half, math.inf
    form = 100, " % of the formula"
    text = "a sparse neuron covers a clause with the stated probability"
    yield Said("theory", text, stated, (-0.1, 0.1), form)
    yield Said("theory", "with many literals that probability is about α^−k", about, (-0.1, 0.1), form)
    text = "collisions are as rare as the exact formula says"
    yield Said("theory", text, together, (-0.1, 0.1), form)
    text = "with many literals they are α^(2k−1) times rarer than in a dense network, 128 at α = 2, k = 4"
    yield Said("theory", text, rarer, (-0.1, 0.1), form)
    text = "the union bound on the probability of a missed clause holds"
    yield Said("theory", text, bound, (-math.inf, 0.01), PLAIN)
    text = "with as many neurons as A.5 asks for, all clauses are covered nine times in ten"
    yield Said("theory", text, enough, (0.9, math.inf), PERCENT)


def has_all(n, factor, given):
    """Return the probability that a neuron with one input of `factor` has all given ones."""
    return (
        math.comb(n - given, n // factor - given) / math.comb(n, n // factor) if given <= n // factor else 0
    )


def one_layer(frame, data):
    """Return the classifiers of one hidden layer on a data set."""
    own = frame[(frame["data"] == data) & ((frame["layers"] == 1) | frame["layers"].isna())]
    for column in {"features", "network"} & set(own):
        own = own[own[column].isna()]
    return own


def on_data(frame):
    """Yield what is said of real data."""
    rows = {data: one_layer(frame, data) for data in TITLES}
    by = {
        data: partial(values, own[own["hidden"].isin((4, 8, 16, 32))], "hidden") for data, own in rows.items()
    }
    cifar = by["cifar100"]

    def everywhere(measure):
        """Return estimates on all data sets, `measure` those of one."""
        return {f"{TITLES[data]}, {key}": e for data in TITLES for key, e in measure(by[data]).items()}

    def above(kind, other="dense", measure="accuracy"):
        return lambda of: at_each(of(kind, measure) - of(other, measure))

    def mean(kind, other="dense"):
        return lambda of: {"mean": by_t((of(kind) - of(other)).mean(axis=1))}

    page = "real-data"
    for kind, words in (("gram", "feature-based splitting"), ("random", "random splitting")):
        yield Said(page, f"{words} is above dense at every width", everywhere(above(kind)))
    text = "feature-based splitting is only comparable to random splitting"
    yield Said(page, text, everywhere(mean("gram", "random")), (-0.01, 0.01))
    for kind, words in (("gram", "feature-based"), ("random", "random")):
        text = f"the relative improvement is largest where neurons are few, {words} splitting"
        yield Said(page, text, everywhere(lambda of, kind=kind: doublings(of(kind, "gain"))), DOWN, GAIN)
    narrow = rows["cifar100"][rows["cifar100"]["hidden"] == 2]
    text = "the accuracy of the dense network is sometimes doubled: at 2 neurons"
    doubled = {"2 neurons": relative(*(values(narrow, "hidden", kind)[2] for kind in ("gram", "dense")))}
    yield Said(page, text, doubled, (1, math.inf), GAIN, among={"cifar100": narrow})

    page = "cifar-100"
    times = needed(rows["cifar100"], cifar("random"))
    text = "a dense network needs over 1.2 times the parameters"
    yield Said(page, f"with 32 neurons, {text}", at_each(times[[32]]), (1.2, math.inf), TIMES)
    yield Said(page, f"at every width {text}", at_each(times), (1.2, math.inf), TIMES)
    text = "an earlier split is better: at 10 % of the training against 90 %"
    yield Said(page, text, mean("random-at-10", "random-at-90")(cifar))
    when = {10: "random-at-10", 25: "random-at-25", 50: "random", 75: "random-at-75", 90: "random-at-90"}
    steps = {
        f"{a} − {b} %": by_t((cifar(when[a]) - cifar(when[b])).mean(axis=1))
        for a, b in ((10, 25), (25, 50), (50, 75), (75, 90))
    }
    yield Said(page, "an earlier split is better, at 10, 25, 50, 75 and 90 %", steps)
    yield Said(page, "even a late split is above dense", mean("random-at-90")(cifar))
    factors = {2: "random", 3: "random-x3", 4: "random-x4", 8: "random-x8"}
    for factor, kind in factors.items():
        text = f"a small network gains with α = {factor}"
        yield Said(page, text, at_each((cifar(kind) - cifar("dense"))[[4]]))
        if factor in (2, 4):
            text = f"neurons are less alike than in dense at every width, α = {factor}"
            yield Said(page, text, above(kind, measure="cosine")(cifar), DOWN, PLAIN)
    apart = {}
    for width in (4, 32):
        trials = pd.DataFrame({kind: cifar(kind)[width] for kind in factors.values()})
        halves = {half: trials[trials.index % 2 == half] for half in (0, 1)}
        parts = []
        for half, own in halves.items():
            ranked = halves[1 - half].mean().sort_values(kind="stable").index
            parts.append(own[ranked[-1]] - own[ranked[0]])
        apart[width] = pd.concat(parts)
    found = {"largest − smallest width": by_t(apart[32] - apart[4])}
    yield Said(page, "differences between the factors fade with width", found, DOWN)

    for layers, sizes in DEPTH.items():
        own = frame[(frame["data"] == "cifar100") & (frame["layers"] == layers - 1)]
        for width, percent in sizes.items():
            text = f"{layers} layers of {width} neurons gain {percent:g} %"
            both = (values(own, "hidden", kind)[width] for kind in ("random", "dense"))
            found = {f"{width} neurons": relative(*both)}
            among = {"cifar100": own[own["hidden"] == width]}
            yield Said("depth", text, found, UP, GAIN, percent / 100, among=among)

    page = "dynamic-and-two-four"
    for width, points, percent in ((4, 4.5, 53), (8, 1.9, 14), (16, 0.5, 3)):
        kinds = ("dense", "random", *(f"rewired-{n}" for n in (5, 10, 20, 30)))
        own = pd.DataFrame({kind: cifar(kind)[width] for kind in kinds})
        halves = {half: own[own.index % 2 == half] for half in (0, 1)}
        chosen = {half: halves[1 - half].iloc[:, 2:].mean().idxmax() for half in halves}
        best = pd.concat([trials[chosen[half]] for half, trials in halves.items()])
        text = f"with {width} neurons, dynamic masks are {points:g} points above one-shot expansion"
        name = f"{width} neurons"
        yield Said(page, text, {name: by_t(best - own["random"])}, size=points / 100)
        text = f"with {width} neurons, dynamic masks gain {percent} % on dense"
        yield Said(page, text, {name: by_t(best / own["dense"] - 1)}, UP, GAIN, percent / 100)
    text, pair = (
        "2:4 is competitive with random splitting",
        cifar("two-four") - cifar("random"),
    )
    yield Said(page, text, at_each(pair[[8]]), (-0.01, 0.01))
    found = at_each((cifar("two-four") - cifar("dense"))[[8]])
    yield Said(page, "2:4 is 7.78 points above dense", found, size=0.0778)

    page = "later-edition"
    for features in (256, 512):
        own = frame[(frame["data"] == "fashion-mnist") & (frame["features"] == features)]
        text = f"the classifier of a CNN with {features} features gains, trained with it"
        of, among = partial(values, own, "hidden"), {"fashion-mnist": own}
        yield Said(page, text, mean("random")(of), among=among)
        text = f"the classifier of a CNN with {features} features gains most where neurons are few"
        yield Said(page, text, doublings(of("random", "gain")), DOWN, GAIN, among=among)
    for factor, end in ((2, ""), (4, "-x4")):
        text = f"children with overlapping inputs are worse, α = {factor}"
        yield Said(page, text, everywhere(mean(f"overlap{end}", f"random{end}")), DOWN)
    for percent in (10, 25, 50):
        text = f"DropConnect of {percent} % is equal to dense within half a point, or worse"
        yield Said(page, text, everywhere(above(f"dropconnect-{percent}")), (-math.inf, 0.005))
    text = "gains keep rising from α = 2 to 4 on small networks"
    yield Said(page, text, everywhere(lambda of: at_each((of("random-x4") - of("random"))[[4, 8]])))


def needed(own, random):
    """Return the parameters of a dense network that is as accurate, in those of the one of that width."""
    own = own[own["hidden"] >= 4]
    dense = values(own, "hidden", "dense").cummax(axis=1)
    counts = own[own["kind"] == "dense"].groupby("hidden")["nonzero"].first()
    rows = {t: np.interp(random.loc[t], dense.loc[t], counts) for t in random.index}
    return pd.DataFrame(rows, index=random.columns).T / counts[random.columns]
