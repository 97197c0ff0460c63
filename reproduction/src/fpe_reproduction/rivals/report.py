"""What a comparison of methods shows: accuracies, and the best rival beside the best of fpe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fpe_reproduction.statistics import Interval, holm, nested

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
    `searched` has no validation accuracy that is comparable, and is given beside them. ``p`` and
    ``searched_p`` are those of no difference, each corrected for the number of rows by Holm's method;
    ``detectable`` is the smallest difference that would have been seen four times in five.
    """
    rows = []
    for (data, hidden), own in frame.groupby(["data", "hidden"], sort=False):
        names = own["method"].unique()
        rival = chosen(own, [name for name in names if name not in OWN])
        ours = chosen(own, [name for name in names if name in OWN and name != "searched"])
        row = {"data": data, "hidden": hidden, "budget": own["budget"].iloc[0], "rival": rival, "fpe": ours}
        row |= {"rival_accuracy": values(own, rival).mean(), "fpe_accuracy": values(own, ours).mean()}
        row |= compared(difference(own, ours, rival))
        if "searched" in names:
            row["searched_accuracy"] = values(own, "searched").mean()
            apart = compared(difference(own, "searched", rival))
            row |= {f"searched_{key}": value for key, value in apart.items()}
        rows.append(row)
    found = pd.DataFrame(rows)
    for key in [key for key in ("p", "searched_p") if key in found]:
        found[key] = holm(found[key].tolist())
    return found


def compared(apart: Interval) -> dict[str, float]:
    """Return a difference, its interval, the p-value of none, and which one would have been seen."""
    found = {"difference": apart.value, "low": apart.low, "high": apart.high}
    p = min(1.0, 2 * min(apart.p_below(0), apart.p_above(0)))
    return {**found, "p": p, "detectable": apart.detectable}


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
