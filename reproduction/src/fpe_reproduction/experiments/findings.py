"""What an experiment has to say: claims beside the paper's, a table, and figures as plain data.

A figure is a value that any renderer can draw: lines with bands, points with a line, or matrices.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fpe.compare.statistics import Interval, mean


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and what was measured.

    Attributes
    ----------
    paper : str
        What the paper says.
    ours : str
        What was measured, with its interval.
    agrees : bool
        Whether the measurement says the same, its interval included; of a size, only that it has this sign.
    in_size : bool or None
        Whether the interval includes the size that the paper gives; None where it gives none.
    """

    paper: str
    ours: str
    agrees: bool
    in_size: bool | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Line:
    """Values over trials at several x, as means with intervals."""

    kind: str
    x: list[float]
    means: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, kind: str, points: dict[float, list[float]]) -> Line:
        """Sum the values at each x up."""
        intervals = [mean(values) for values in points.values()]
        return cls(
            kind,
            list(points),
            [i.value for i in intervals],
            [i.low for i in intervals],
            [i.high for i in intervals],
        )


@dataclass(frozen=True)
class Lines:
    """A figure of lines with confidence bands.

    Attributes
    ----------
    title, x, y : str
        What stands at the top and at the axes.
    lines : list of Line
        One for each kind.
    level : float or None
        Where a dashed line marks what would be no change.
    scale : str
        Of the x axis: "log" by doublings, or "linear".
    """

    title: str
    x: str
    y: str
    lines: list[Line]
    level: float | None = None
    scale: str = "log"
    type: str = "lines"


@dataclass(frozen=True)
class Points:
    """A figure of points, for each kind with its least-squares line."""

    title: str
    x: str
    y: str
    points: dict[str, list[tuple[float, float]]]
    type: str = "points"


@dataclass(frozen=True)
class Matrix:
    """A figure of a matrix in colours.

    Attributes
    ----------
    title : str
        What it is.
    values : list of list of float
        Rows.
    x, y : str
        What columns and rows are.
    columns, rows : list of str
        Their names.
    every : (int, int)
        After how many rows and columns a line is drawn; 0 for none.
    """

    title: str
    values: list[list[float]]
    x: str
    y: str
    columns: list[str]
    rows: list[str]
    every: tuple[int, int] = (0, 0)
    type: str = "matrix"


@dataclass
class Findings:
    """What an experiment has to say."""

    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Lines | Points | Matrix] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as it is stored."""
        return dataclasses.asdict(self)


def verdict(claim: dict[str, Any]) -> str:
    """Return the verdict on a stored claim: "agrees", "in sign only", or "not shown".

    It agrees if the statement holds with its whole interval and, where the paper gives a size, the interval
    includes that size.
    """
    if not claim["agrees"]:
        return "not shown"
    return "in sign only" if claim.get("in_size") is False else "agrees"


def sign_claim(
    paper: str,
    what: str,
    interval: Interval,
    up: bool,
    scale: float,
    unit: str,
    digits: int = 1,
    size: float | None = None,
) -> Claim:
    """State that something rises, or falls, with its interval; it holds if 0 lies outside.

    `size` is what the paper gives, in the unit that is printed.
    """
    agrees = interval.above_zero if up else interval.below_zero
    in_size = None if size is None else interval.includes(size / scale)
    return Claim(paper, f"{what}: {interval.text(scale, digits)}{unit}", agrees, in_size)
