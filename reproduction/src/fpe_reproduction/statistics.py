"""Means and slopes with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

NAN = float("nan")
#: The p-value below which the splits of a setting count as differing more than those of others.
LARGER = 0.2


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its 95 % interval, which are NaN for a single value.

    `df` are the degrees of freedom of Student's t, by which it is made; those of a bootstrap are infinite.
    """

    value: float
    low: float
    high: float
    df: float = math.inf

    @property
    def error(self) -> float:
        """The standard error of the estimate."""
        return (self.high - self.low) / 2 / float(stats.t.ppf(0.975, self.df))

    @property
    def detectable(self) -> float:
        """The smallest true value that such a measurement would tell from 0 four times in five."""
        return float(stats.t.ppf(0.975, self.df) + stats.t.ppf(0.8, self.df)) * self.error

    def p_below(self, bound: float) -> float:
        """Return how likely so large an estimate, or a larger one, is if the true value is `bound`."""
        if np.isnan(self.low) or math.isinf(bound):
            return float(np.isnan(self.low) or bound > 0)
        # By the bound on this side, so that p is below 0.025 just where a lopsided interval excludes `bound`.
        error = (self.value - self.low) / float(stats.t.ppf(0.975, self.df))
        if error == 0:
            return float(self.value <= bound)
        return float(stats.t.sf((self.value - bound) / error, self.df))

    def p_above(self, bound: float) -> float:
        """Return how likely so small an estimate, or a smaller one, is if the true value is `bound`."""
        return Interval(-self.value, -self.high, -self.low, self.df).p_below(-bound)

    @property
    def p_zero(self) -> float:
        """How likely an estimate so far from 0, on either side, is if the true value is 0."""
        return min(1.0, 2 * min(self.p_below(0), self.p_above(0)))

    def text(self, scale: float = 1, digits: int = 1, sign: bool = True) -> str:
        """Write as ``+1.2 [+0.8, +1.6]``."""
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        value, low, high = (form.format(scale * v) for v in (self.value, self.low, self.high))
        return value if np.isnan(self.low) else f"{value} [{low}, {high}]"


def mean(values: Iterable[float]) -> Interval:
    """Return the mean and its interval by Student's t, without NaN. For paired data, give the differences."""
    array = np.asarray(values, dtype=float)
    array = array[~np.isnan(array)]
    center = float(array.mean()) if len(array) else NAN
    if len(array) < 2:
        return Interval(center, NAN, NAN)
    half = float(stats.t.ppf(0.975, len(array) - 1) * stats.sem(array))
    return Interval(center, center - half, center + half, len(array) - 1)


def proportion(outcomes: Iterable[bool]) -> Interval:
    """Return the share of outcomes that are true, with its exact interval (Clopper and Pearson, 1934).

    Student's t has an interval of no width where all outcomes are the same.
    """
    array = np.asarray(outcomes, dtype=bool)
    found = stats.binomtest(int(array.sum()), len(array)).proportion_ci()
    return Interval(float(array.mean()), float(found.low), float(found.high))


def ratio_of_sums(
    parts: np.ndarray, wholes: np.ndarray, draws: int = 10_000, seed: int = 0
) -> tuple[list[Interval], Interval]:
    """Return the ratio of two mean differences, with intervals by a bootstrap over trials.

    Parameters
    ----------
    parts, wholes : ndarray of shape (trials, cases)
        The ratio of a case is that of the means over trials, since a single trial's whole may be near 0.
    draws : int, default 10 000
        Bootstrap samples; each draws the same trials for all cases.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    list of Interval, Interval
        For each case, and for the mean over the cases.
    """

    def ratios(sums: np.ndarray) -> np.ndarray:
        each = sums[..., 0, :] / sums[..., 1, :]
        return np.concatenate([each, each.mean(axis=-1, keepdims=True)], axis=-1)

    *each, overall = _bootstrap(ratios, np.stack([parts, wholes], axis=1), draws, seed)
    return each, overall


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Return the slope of the least-squares line; NaN where all x are the same."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(_slope_of_sums(_sums(x, y)))


def slope_over_trials(
    trials: Sequence[tuple[ArrayLike, ArrayLike]], draws: int = 4000, seed: int = 0
) -> Interval:
    """Return the slope through the points (x, y) of all trials, with an interval by a bootstrap over trials.

    Points of one trial depend on each other; trials do not.
    """
    sums = np.array([_sums(x, y) for x, y in trials])
    (interval,) = _bootstrap(lambda s: _slope_of_sums(s)[..., None], sums, draws, seed)
    return interval


def _sums(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return the sums that a slope is a ratio of: a trial counts by them alone."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return np.array([len(x), x.sum(), y.sum(), x @ x, x @ y])


def _slope_of_sums(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    return np.asarray((n * xy - x * y) / (n * xx - x * x))


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, draws: int, seed: int
) -> list[Interval]:
    """Return statistics of the sum of the trials' rows, with the quantiles over trials drawn again."""
    drawn = np.random.default_rng(seed).integers(0, len(rows), (draws, len(rows)))
    with np.errstate(invalid="ignore", divide="ignore"):
        values, samples = statistic(rows.sum(axis=0)), statistic(rows[drawn].sum(axis=1))
    low, high = np.full((2, len(values)), NAN)
    if len(rows) > 1:
        low, high = np.nanquantile(samples, [0.025, 0.975], axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(values, low, high, strict=True)]


def jackknife(estimate: Callable[[np.ndarray], float], trials: int) -> Interval:
    """Return an estimate from the numbers of some trials, with an interval by leaving out one at a time.

    Half its width is Student's t, of `trials` − 1 degrees of freedom, times the jackknife's standard error.
    """
    every = np.arange(trials)
    value = estimate(every)
    if trials < 2:
        return Interval(value, NAN, NAN)
    without = np.array([estimate(np.delete(every, trial)) for trial in every])
    error = np.sqrt((trials - 1) / trials * np.square(without - without.mean()).sum())
    half = float(stats.t.ppf(0.975, trials - 1) * error)
    return Interval(value, value - half, value + half, trials - 1)


def size_at(sizes: ArrayLike, values: ArrayLike, value: float) -> float:
    """Return the size at which a curve has a value.

    Parameters
    ----------
    sizes : array-like of shape (sizes,)
        Ascending.
    values : array-like of shape (sizes,)
        The better, the larger the size, whether that is more or less. Where one is not better than one
        before it, the curve is flat there.
    value : float
        Of the curve, which is linear in the logarithm of the size between its points; beyond them it has
        its mean slope.
    """
    x, y = np.log(np.asarray(sizes, dtype=float)), np.asarray(values, dtype=float)
    sign = np.sign(y[-1] - y[0])
    y, value = np.maximum.accumulate(sign * y), sign * value
    per_value = (x[-1] - x[0]) / (y[-1] - y[0])
    if value < y[0]:
        return float(np.exp(x[0] + (value - y[0]) * per_value))
    if value > y[-1]:
        return float(np.exp(x[-1] + (value - y[-1]) * per_value))
    place = max(1, int(np.searchsorted(y, value)))
    low, high = y[place - 1], y[place]
    share = (value - low) / (high - low)
    return float(np.exp(x[place - 1] + share * (x[place] - x[place - 1])))


def equal_size(sizes: ArrayLike, curve: ArrayLike, values: ArrayLike) -> Interval:
    """Return the size of the network on a curve that is as good as another network, with its interval.

    Parameters
    ----------
    sizes : array-like of shape (sizes,)
        Ascending.
    curve : array-like of shape (trials, sizes)
        A measure of the networks of these sizes.
    values : array-like of shape (trials,)
        The same measure of the other network, in the same trials.
    """
    measured, others = np.asarray(curve, dtype=float), np.asarray(values, dtype=float)

    def estimate(trials: np.ndarray) -> float:
        return float(np.log(size_at(sizes, measured[trials].mean(0), others[trials].mean())))

    found = jackknife(estimate, len(others))
    return Interval(*(float(np.exp(bound)) for bound in (found.value, found.low, found.high)))


def nested(values: ArrayLike, overlap: ArrayLike = 1.0) -> list[Interval]:
    """Return the mean of each setting over splits and seeds, with its interval by an analysis of variance.

    The seeds of a split have the split in common, and a few splits tell little of how far splits differ.
    How many times the variance between splits is what seeds explain is therefore estimated over all
    settings. A setting whose own splits differ more has their variance, with its few degrees of freedom.

    Parameters
    ----------
    values : array-like of shape (settings, splits, seeds)
        For paired data, the differences.
    overlap : array-like of shape (settings,), default 1
        How many times what splits differ by, beyond what seeds explain, counts: splits of the same samples
        differ less than new samples would (`overlap_of`).
    """
    array = np.asarray(values, dtype=float)
    settings, splits, seeds = array.shape
    if splits < 2 or seeds < 2:
        return [mean(own) for own in array.reshape(settings, -1)]
    between, within = _variances(array)
    ratios = between[within > 0] / within[within > 0]
    expected = max(1.0, ratios.sum() / max(1, len(ratios))) * within
    # Of a product of two estimates: the ratio, and the variance within splits (Satterthwaite).
    df = 1 / (1 / (settings * (splits - 1)) + 1 / (splits * (seeds - 1)))
    own = between > stats.f.ppf(1 - LARGER, splits - 1, df) * expected
    all_df = np.where(own, splits - 1, df)
    larger = np.maximum(between, expected)
    whole = within + np.asarray(overlap) * (larger - within)
    halves = stats.t.ppf(0.975, all_df) * np.sqrt(whole / (splits * seeds))
    return _around(array, halves, all_df)


def by_split(values: ArrayLike, overlap: ArrayLike = 1.0) -> list[Interval]:
    """Return the mean of each series over splits and seeds, with its interval by Student's t over the splits.

    Splits count as differing by what their seeds explain at least. For accuracies: how they differ between
    splits says nothing of the splits of other data, as the ratio of `nested` does for differences.

    Parameters
    ----------
    values, overlap : array-like of shape (series, splits, seeds), and of shape (series,)
        As for `nested`.
    """
    array = np.asarray(values, dtype=float)
    series, splits, seeds = array.shape
    if splits < 2 or seeds < 2:
        return [mean(own) for own in array.reshape(series, -1)]
    between, within = _variances(array)
    whole = within + np.asarray(overlap) * np.maximum(0, between - within)
    df = np.full(series, splits - 1)
    return _around(array, stats.t.ppf(0.975, df) * np.sqrt(whole / (splits * seeds)), df)


def overlap_of(splits: int, test_share: float) -> float:
    """Return how many times the variance between splits counts that draw test parts of the same samples.

    Nadeau and Bengio (2003); `test_share` is the number of test samples for each training sample.
    """
    return 1 + splits * test_share


def _variances(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean squares between and within splits of (series, splits, seeds)."""
    between = array.shape[2] * array.mean(axis=2).var(axis=1, ddof=1)
    return between, array.var(axis=2, ddof=1).mean(axis=1)


def _around(array: np.ndarray, halves: np.ndarray, df: np.ndarray) -> list[Interval]:
    centers = array.mean(axis=(1, 2))
    rows = zip(centers, centers - halves, centers + halves, df, strict=True)
    return [Interval(*map(float, row)) for row in rows]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false rejection in the family stays (Holm, 1979)."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
