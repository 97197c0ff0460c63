"""What a comparison of methods shows: accuracies, and the best rival beside the best of fpe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fpe_reproduction.statistics import holm, nested

#: Methods of fpe; all others are rivals. Pruning softmax regression is what a user could do without it.
OWN = ("moved", "one-shot", "gradual", "direct", "searched")


def values(frame: pd.DataFrame, method: str) -> np.ndarray:
    """Return the accuracies of a method in one row of the comparison, (splits, seeds)."""
    own = frame[frame["method"] == method]
    return np.asarray(own.pivot(index="split", columns="seed", values="accuracy"))


def chosen(frame: pd.DataFrame, methods: Any) -> str:
    """Return the method that is best on validation data, over all splits."""
    known = frame[frame["method"].isin(methods)].groupby("method")["validation"].mean()
    return str(known.idxmax())


def differences(frame: pd.DataFrame, method: str, other: str) -> np.ndarray:
    """Return by how much a method is more accurate than another one, (splits, seeds)."""
    return np.asarray(values(frame, method) - values(frame, other))


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each data set and width the best rival, the best method of fpe, and their difference.

    Both are chosen on validation data, so the difference on test data has no advantage from the choice.
    `searched` has no validation accuracy that is comparable, and is given beside them. ``p`` and
    ``searched_p`` are those of no difference, each corrected for the number of rows by Holm's method;
    ``detectable`` is the smallest difference that would have been seen four times in five.
    """
    rows: list[dict[str, Any]] = []
    apart: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {"": [], "searched_": []}
    for (data, hidden), own in frame.groupby(["data", "hidden"], sort=False):
        names = own["method"].unique()
        rival = chosen(own, [name for name in names if name not in OWN])
        ours = chosen(own, [name for name in names if name in OWN and name != "searched"])
        row = {"data": data, "hidden": hidden, "budget": own["budget"].iloc[0], "rival": rival, "fpe": ours}
        row |= {"rival_accuracy": values(own, rival).mean(), "fpe_accuracy": values(own, ours).mean()}
        apart[""].append((row, differences(own, ours, rival)))
        if "searched" in names:
            row["searched_accuracy"] = values(own, "searched").mean()
            apart["searched_"].append((row, differences(own, "searched", rival)))
        rows.append(row)
    for prefix, pairs in apart.items():
        found = nested([values for _, values in pairs]) if pairs else []
        p_values = holm([own.p_zero for own in found])
        for (row, _), own, p in zip(pairs, found, p_values, strict=True):
            about = {"difference": own.value, "low": own.low, "high": own.high}
            about |= {"p": p, "detectable": own.detectable}
            row |= {f"{prefix}{key}": value for key, value in about.items()}
    return pd.DataFrame(rows)


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy and interval of each method, data set and width."""
    cells = list(frame.groupby(["data", "hidden", "method"], sort=False))
    found = nested([values(own, method) for (_, _, method), own in cells])
    rows = []
    for ((data, hidden, method), own), reached in zip(cells, found, strict=True):
        row = {"data": data, "hidden": hidden, "method": method, "budget": own["budget"].iloc[0]}
        row |= {"nonzero": own["nonzero"].max(), "accuracy": reached.value}
        rows.append({**row, "low": reached.low, "high": reached.high})
    return pd.DataFrame(rows)
