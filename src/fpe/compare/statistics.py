"""Means and slopes with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; without an interval (one value only) the bounds are NaN.

    Attributes
    ----------
    value, low, high : float
        Estimate and bounds.
    """

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
        """Whether the interval holds a value."""
        return self.low <= value <= self.high

    def text(self, scale: float = 1, digits: int = 1, sign: bool = True) -> str:
        """Write as ``+1.2 [+0.8, +1.6]``."""
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        value, low, high = (form.format(scale * v) for v in (self.value, self.low, self.high))
        return value if np.isnan(self.low) else f"{value} [{low}, {high}]"


def mean(values: Sequence[float]) -> Interval:
    """Return the mean and its interval by Student's t.

    For paired differences, give the differences.
    """
    from scipy.stats import t

    array = np.asarray(values, dtype=float)
    center = float(array.mean())
    if len(array) < 2:
        return Interval(center, float("nan"), float("nan"))
    half = float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    return Interval(center, center - half, center + half)


def ratio_of_sums(
    parts: np.ndarray, wholes: np.ndarray, draws: int = 10_000, seed: int = 0
) -> tuple[list[Interval], Interval]:
    """Return how much of a difference another one is, and the mean of that, by drawing trials again.

    Parameters
    ----------
    parts, wholes : ndarray
        Differences of each trial, (trials, cases). In each case the ratio is that of the means over trials,
        since a single trial's whole may be near 0.
    draws : int, default 10 000
        Times that as many trials are drawn, with replacement, the same in all cases.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    list of Interval, Interval
        For each case, and for the mean over the cases.
    """
    trials = len(parts)
    picked = np.random.default_rng(seed).integers(0, trials, (draws, trials))
    with np.errstate(invalid="ignore", divide="ignore"):
        center = parts.mean(axis=0) / wholes.mean(axis=0)
        drawn = parts[picked].mean(axis=1) / wholes[picked].mean(axis=1)
    estimates = [*center, center.mean()]
    columns = [*drawn.T, drawn.mean(axis=1)]
    made = []
    for value, column in zip(estimates, columns, strict=True):
        low, high = np.nanquantile(column, [0.025, 0.975]) if trials > 1 else (np.nan, np.nan)
        made.append(Interval(float(value), float(low), float(high)))
    return made[:-1], made[-1]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line; NaN where all x are the same."""
    dx = np.asarray(x, dtype=float) - np.mean(x)
    total = float(dx @ dx)
    return float(dx @ np.asarray(y, dtype=float)) / total if total > 0 else float("nan")


def slope_over_trials(
    trials: Sequence[tuple[Sequence[float], Sequence[float]]], draws: int = 4000, seed: int = 0
) -> Interval:
    """Return the slope through the points of all trials, and its interval by drawing trials again.

    Points of one trial depend on each other; trials do not.

    Parameters
    ----------
    trials : sequence of (x, y)
        The points of each trial.
    draws : int, default 4000
        Times that as many trials are drawn, with replacement.
    seed : int, default 0
        Of the draws.
    """
    # A slope is a ratio of sums, so that a trial enters by its sums alone.
    sums = np.array(
        [
            [len(x), np.sum(x), np.sum(y), np.dot(x, x), np.dot(x, y)]
            for x, y in ((np.asarray(x, float), np.asarray(y, float)) for x, y in trials)
        ]
    )
    center = float(_slope_of_sums(sums.sum(axis=0)))
    if len(trials) < 2:
        return Interval(center, float("nan"), float("nan"))
    picked = np.random.default_rng(seed).integers(0, len(trials), (draws, len(trials)))
    low, high = np.nanquantile(_slope_of_sums(sums[picked].sum(axis=1)), [0.025, 0.975])
    return Interval(center, float(low), float(high))


def _slope_of_sums(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((n * xy - x * y) / (n * xx - x * x))
