"""What a comparison of methods shows: accuracies, and the best rival beside the best of fpe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fpe_reproduction.statistics import Interval, nested

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


def difference(frame: pd.DataFrame, method: str, other: str) -> Interval:
    """Return by how much a method is more accurate than another one, paired by split and seed."""
    return nested(values(frame, method) - values(frame, other))


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each data set and width the best rival, the best method of fpe, and their difference.

    Both are chosen on validation data, so the difference on test data has no advantage from the choice.
    `searched` has no validation accuracy that is comparable, and is given beside them.
    """
    rows = []
    for (data, hidden), own in frame.groupby(["data", "hidden"], sort=False):
        names = own["method"].unique()
        rival = chosen(own, [name for name in names if name not in OWN])
        ours = chosen(own, [name for name in names if name in OWN and name != "searched"])
        apart = difference(own, ours, rival)
        row = {"data": data, "hidden": hidden, "budget": own["budget"].iloc[0], "rival": rival, "fpe": ours}
        row |= {"rival_accuracy": values(own, rival).mean(), "fpe_accuracy": values(own, ours).mean()}
        row |= {"difference": apart.value, "low": apart.low, "high": apart.high}
        if "searched" in names:
            apart = difference(own, "searched", rival)
            row |= {"searched_accuracy": values(own, "searched").mean(), "searched_difference": apart.value}
            row |= {"searched_low": apart.low, "searched_high": apart.high}
        rows.append(row)
    return pd.DataFrame(rows)


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy and interval of each method, data set and width."""
    rows = []
    for (data, hidden, method), own in frame.groupby(["data", "hidden", "method"], sort=False):
        found = nested(values(own, method))
        row = {"data": data, "hidden": hidden, "method": method, "budget": own["budget"].iloc[0]}
        row |= {
            "nonzero": own["nonzero"].max(),
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
        }
        rows.append(row)
    return pd.DataFrame(rows)
