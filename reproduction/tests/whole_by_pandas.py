"""The stored runs of whole networks, and what tests need of them, by pandas."""

import json

import numpy as np
import pandas as pd

from evidence import EVIDENCE


def log_size(curve, value):
    """Return the logarithm of the size at which a series of losses or errors, by size, has a value."""
    x, y = np.log(curve.index.to_numpy(float)), np.minimum.accumulate(curve.to_numpy())
    if y[-1] <= value <= y[0]:
        return np.interp(-value, -y, x)
    end = 0 if value > y[0] else -1
    return x[end] + (value - y[end]) * (x[-1] - x[0]) / (y[-1] - y[0])


def stored_runs():
    """Return all stored runs, one in a row."""
    rows = [
        {"experiment": file.stem, "task": task, **record}
        for file in sorted((EVIDENCE / "runs").glob("whole-*.json"))
        for task, record in json.loads(file.read_text(encoding="utf-8")).items()
    ]
    return pd.DataFrame(rows)


def best(runs, experiments):
    """Return the runs of each way of training at the rate of its least validation loss, seeds 0 and 1."""
    own = runs[runs.experiment.isin(experiments)].copy()
    own[["way", "rate", "seed"]] = own.task.str.extract(r"^(.*)-([\d.e-]+?)-(\d)$")
    own["seed"] = own.seed.astype(int)
    tuned = own[own.seed < 2].groupby(["way", "rate"]).validation.agg(["mean", "size"])
    chosen = tuned[tuned["size"] == 2]["mean"].reset_index().sort_values("mean").groupby("way").rate.first()
    return own[own.rate == own.way.map(chosen)].set_index(["way", "seed"]).sort_index()


NETWORKS = {
    "dense": "dense-1",
    **{f"dense, {size} ×": f"dense-{size}" for size in ("1.5", "2", "3", "4.5", "6")},
    "dense, 4 blocks": "blocks4-1", "dense, 8 blocks": "blocks8-1", "**wider, 50 % zeros**": "zeros-0.5",
    "**wider, 75 % zeros**": "zeros-0.75", "**wider, 87.5 % zeros**": "zeros-0.875",
    "**wider, 50 % random zeros**": "fixed-0.5", "**wider, 75 % random zeros**": "fixed-0.75",
    "**wider, 87.5 % random zeros**": "fixed-0.875",
    **{f"**wider, {100 * z:g} % zeros, random first**": f"thinned-{z}" for z in (0.5, 0.75, 0.875)},
}  # fmt: skip
OF_TEXTS = ["whole-text", "whole-wider", "whole-fixed", "whole-thinned"]
KINDS = {"pruned": "zeros", "random masks": "fixed", "random, then pruned": "thinned"}
CURVE = ("dense-1", "dense-1.5", "dense-2", "dense-3")
LARGER = ("dense-4.5", "dense-6")


def curve_of(own, suffix, measure="test"):
    """Return a measure of dense networks, by their count and by seed."""
    known = own.index.get_level_values("way")
    names = [name for name in (*CURVE, *LARGER) if name in CURVE or f"{name}{suffix}" in known]
    found = pd.DataFrame({f"{name}": own.loc[f"{name}{suffix}"][measure] for name in names})
    return found.set_axis([own.loc[f"{name}{suffix}"].nonzero.iloc[0] for name in names], axis=1)
