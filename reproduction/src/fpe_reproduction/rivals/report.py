"""What a comparison of methods shows: accuracies, and the best rival beside the best of fpe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fpe_reproduction.statistics import by_split, holm, nested, overlap_of

#: Methods of fpe; all others are rivals. Pruning by magnitude, and softmax regression, is what a user could
#: do without it.
OWN = ("moved", "one-shot", "gradual", "direct", "searched")


def values(frame: pd.DataFrame, method: str) -> np.ndarray:
    """Return the accuracies of a method in one row of the comparison, (splits, seeds)."""
    own = frame[frame["method"] == method]
    return np.asarray(own.pivot(index="split", columns="seed", values="accuracy"))


def chosen(frame: pd.DataFrame, methods: Any) -> list[str]:
    """Return for each split the method that is best on its validation data, which has no test sample."""
    known = frame[frame["method"].isin(methods)].drop_duplicates(["method", "split"])
    table = known.pivot(index="split", columns="method", values="validation")
    return [str(name) for name in table.idxmax(axis=1)]


def of_choice(frame: pd.DataFrame, methods: Sequence[str]) -> np.ndarray:
    """Return the accuracies of one method for each split, (splits, seeds)."""
    return np.stack([values(frame, method)[split] for split, method in enumerate(methods)])


def differences(frame: pd.DataFrame, method: str, other: str) -> np.ndarray:
    """Return by how much a method is more accurate than another one, (splits, seeds)."""
    return np.asarray(values(frame, method) - values(frame, other))


def overlap(frame: pd.DataFrame) -> float:
    """Return how many times the variance between the splits of a setting counts (`overlap_of`)."""
    return overlap_of(frame["split"].nunique(), frame["test_share"].iloc[0])


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each data set and width the best rival, the best method of fpe, and their difference.

    Both are chosen on the validation data of each split, so the difference on its test data has no advantage
    from the choice; splits may choose different ones, which are all named. `searched` has no validation
    accuracy that is comparable, and is given beside them. ``p`` and ``searched_p`` are those of no
    difference, each corrected for the number of rows by Holm's method; ``detectable`` is the smallest
    difference that would have been seen four times in five.
    """
    rows: list[dict[str, Any]] = []
    apart: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {"": [], "searched_": []}
    overlaps = []
    for (data, hidden), own in frame.groupby(["data", "hidden"], sort=False):
        names = own["method"].unique()
        rivals = chosen(own, [name for name in names if name not in OWN])
        ours = chosen(own, [name for name in names if name in OWN and name != "searched"])
        rival, mine = of_choice(own, rivals), of_choice(own, ours)
        row = {"data": data, "hidden": hidden, "budget": own["budget"].iloc[0]}
        row |= {"rival": _names(rivals), "fpe": _names(ours)}
        row |= {"rival_accuracy": rival.mean(), "fpe_accuracy": mine.mean()}
        apart[""].append((row, mine - rival))
        if "searched" in names:
            row["searched_accuracy"] = values(own, "searched").mean()
            apart["searched_"].append((row, values(own, "searched") - rival))
        rows.append(row)
        overlaps.append(overlap(own))
    for prefix, pairs in apart.items():
        found = nested([values for _, values in pairs], overlaps) if pairs else []
        p_values = holm([own.p_zero for own in found])
        for (row, _), own, p in zip(pairs, found, p_values, strict=True):
            about = {"difference": own.value, "low": own.low, "high": own.high}
            about |= {"p": p, "detectable": own.detectable}
            row |= {f"{prefix}{key}": value for key, value in about.items()}
    return pd.DataFrame(rows)


def _names(methods: Sequence[str]) -> str:
    """Name each method once, the one of most splits first."""
    return ", ".join(sorted(dict.fromkeys(methods), key=lambda name: -methods.count(name)))


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy and interval of each method, data set and width."""
    cells = list(frame.groupby(["data", "hidden", "method"], sort=False))
    found = by_split([values(own, method) for (*_, method), own in cells], [overlap(own) for _, own in cells])
    rows = []
    for ((data, hidden, method), own), reached in zip(cells, found, strict=True):
        row = {"data": data, "hidden": hidden, "method": method, "budget": own["budget"].iloc[0]}
        row |= {"nonzero": own["nonzero"].max(), "accuracy": reached.value}
        rows.append({**row, "low": reached.low, "high": reached.high})
    return pd.DataFrame(rows)
