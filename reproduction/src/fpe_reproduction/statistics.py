"""Means and slopes with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NAN = float("nan")


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its 95 % interval, which are NaN for a single value."""

    value: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0

    def includes(self, value: float) -> bool:
        """Whether the interval includes a value."""
        return self.low <= value <= self.high

    def text(self, scale: float = 1, digits: int = 1, sign: bool = True) -> str:
        """Write as ``+1.2 [+0.8, +1.6]``."""
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        value, low, high = (form.format(scale * v) for v in (self.value, self.low, self.high))
        return value if np.isnan(self.low) else f"{value} [{low}, {high}]"


def mean(values: Sequence[float]) -> Interval:
    """Return the mean and its interval by Student's t. For paired data, give the differences."""
    array = np.asarray(values, dtype=float)
    center = float(array.mean())
    if len(array) < 2:
        return Interval(center, NAN, NAN)
    half = float(stats.t.ppf(0.975, len(array) - 1) * stats.sem(array))
    return Interval(center, center - half, center + half)


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
    trials = len(parts)
    drawn = np.random.default_rng(seed).integers(0, trials, (draws, trials))
    with np.errstate(invalid="ignore", divide="ignore"):
        center = parts.mean(axis=0) / wholes.mean(axis=0)
        ratios = parts[drawn].mean(axis=1) / wholes[drawn].mean(axis=1)
    pairs = zip([*center, center.mean()], [*ratios.T, ratios.mean(axis=1)], strict=True)
    *each, overall = (_bootstrapped(float(value), column, trials) for value, column in pairs)
    return each, overall


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line; NaN where all x are the same."""
    dx = np.asarray(x, dtype=float) - np.mean(x)
    total = float(dx @ dx)
    return float(dx @ np.asarray(y, dtype=float)) / total if total > 0 else NAN


def slope_over_trials(
    trials: Sequence[tuple[Sequence[float], Sequence[float]]], draws: int = 4000, seed: int = 0
) -> Interval:
    """Return the slope through the points (x, y) of all trials, with an interval by a bootstrap over trials.

    Points of one trial depend on each other; trials do not.
    """
    arrays = [(np.asarray(x, float), np.asarray(y, float)) for x, y in trials]
    # A slope is a ratio of sums, so that a trial counts by its sums alone.
    sums = np.array([[len(x), x.sum(), y.sum(), x @ x, x @ y] for x, y in arrays])
    drawn = np.random.default_rng(seed).integers(0, len(trials), (draws, len(trials)))
    value = float(_slope_of_sums(sums.sum(axis=0)))
    return _bootstrapped(value, _slope_of_sums(sums[drawn].sum(axis=1)), len(trials))


def _slope_of_sums(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((n * xy - x * y) / (n * xx - x * x))


def _bootstrapped(value: float, drawn: np.ndarray, trials: int) -> Interval:
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if trials > 1 else (NAN, NAN)
    return Interval(value, float(low), float(high))
