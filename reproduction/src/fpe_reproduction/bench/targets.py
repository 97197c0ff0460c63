"""What packed layers are asked to reach, and whether they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fpe_reproduction.bench import rows as names

#: Layers with at least so many inputs are those that the limits are asked of.
LARGE = 4096

Values = dict[str, float]


@dataclass(frozen=True)
class Target:
    """A limit: what is measured of a case at several places, and the number that none may cross.

    Attributes
    ----------
    what : str
        The sentence before the limit.
    limit : float
        The number.
    at_most : bool
        Whether values must stay below it, or above.
    values : callable
        Takes a case, returns values by the place where they were measured.
    """

    what: str
    limit: float
    at_most: bool
    values: Callable[[dict[str, Any]], Values]

    @property
    def text(self) -> str:
        """The limit with its sign."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"

    def of(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the worst value of a case, where it was, and whether it holds; None where there is none."""
        values = self.values(case)
        if not values:
            return {"value": None, "where": "", "holds": None}
        where = (max if self.at_most else min)(values, key=lambda place: values[place])
        value = values[where]
        holds = value <= self.limit if self.at_most else value >= self.limit
        return {"value": value, "where": where, "holds": holds}


def verdicts(result: dict[str, Any]) -> dict[str, Any]:
    """Compare a result with all limits.

    Parameters
    ----------
    result : dict
        What `fpe_reproduction.bench.run.run_bench` returned.

    Returns
    -------
    dict
        ``cases``: names of the layers looked at, those of 4,096 inputs or more if there are any;
        ``rows``: for each limit ``what``, ``limit``, ``cells`` (one for each case) and ``holds``, None if
        nothing was measured.
    """
    layers = [c for c in result["cases"] if c["kind"] == "layer" and c["device"] == "cpu"]
    cases = [case for case in layers if case["inputs"] >= LARGE] or layers
    rows = []
    for target in TARGETS:
        cells = [target.of(case) for case in cases]
        known = [cell["holds"] for cell in cells if cell["holds"] is not None]
        holds = all(known) if known else None
        rows.append({"what": target.what, "limit": target.text, "cells": cells, "holds": holds})
    return {"cases": [case_name(case) for case in cases], "rows": rows}


def case_name(case: dict[str, Any]) -> str:
    """Return the short name of a case."""
    name = case["name"].replace("x", " × ") if case["kind"] == "layer" else case["name"]
    where = "" if case["device"] == "cpu" else f", {case['device']}"
    return f"{name}, α = {case['factor']}{where}"


def _row(case: dict[str, Any], part: str, name: str) -> dict[str, Any] | None:
    return next((row for row in case[part] if row["name"] == name), None)


def _medians(part: str, name: str, key: str, only: str | None = None) -> Callable[[dict[str, Any]], Values]:
    """Take the medians of a row's ratio, by batch, or at one batch only."""

    def values(case: dict[str, Any]) -> Values:
        row = _row(case, part, name)
        batches = row["batches"] if row else {}
        return {f"batch {b}": t[key]["median"] for b, t in batches.items() if only in (None, b) and key in t}

    return values


def _stored(part: str, name: str) -> Callable[[dict[str, Any]], Values]:
    """Compare a row's bytes with the dense parent's."""

    def values(case: dict[str, Any]) -> Values:
        row, dense = _row(case, part, name), _row(case, part, names.DENSE)
        return {"": row["stored"] / dense["stored"]} if row and dense else {}

    return values


def _peaks(case: dict[str, Any]) -> Values:
    row, dense = (_row(case, "training", name) for name in (names.PACKED, names.DENSE))
    if not row or not dense:
        return {}
    return {f"batch {b}": t["peak"] / dense["batches"][b]["peak"] for b, t in row["batches"].items()}


def _codes_to_wide(case: dict[str, Any]) -> Values:
    coded, wide = (_row(case, "forward", name) for name in (names.CODES, names.WIDE))
    if not coded or not wide or "1" not in coded["batches"]:
        return {}
    return {"batch 1": _seconds(coded) / _seconds(wide)}


def _seconds(row: dict[str, Any]) -> float:
    return float(row["batches"]["1"]["seconds"]["median"])


TARGETS = (
    Target(
        "blocks, forward: time over the dense parent's",
        1.05,
        True,
        _medians("forward", names.PACKED, "ratio"),
    ),
    Target("wide with zeros: time over the blocks'", 2, False, _medians("forward", names.WIDE, "to_packed")),
    Target(
        "CSR, one sample: time over the blocks'", 10, False, _medians("forward", names.CSR, "to_packed", "1")
    ),
    Target(
        "mask in forward, one sample: time over the blocks'",
        30,
        False,
        _medians("forward", names.PRUNE, "to_packed", "1"),
    ),
    Target(
        "network of blocks: bytes over the dense network's", 1.02, True, _stored("training", names.PACKED)
    ),
    Target(
        "blocks, training step: time over the dense network's",
        1.2,
        True,
        _medians("training", names.PACKED, "ratio"),
    ),
    Target("blocks, training step: peak bytes over the dense network's", 1.1, True, _peaks),
    Target(
        "codes of a random split: bytes over the dense parent's", 1.1, True, _stored("forward", names.CODES)
    ),
    Target("codes, one sample: time over wide with zeros", 1.0, True, _codes_to_wide),
)
