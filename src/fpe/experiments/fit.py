"""The main job: dense against expanded, at the same number of non-zero parameters, on given data."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fpe.data import Dataset
from fpe.experiments.config import FitConfig
from fpe.experiments.engine import Engine
from fpe.experiments.runner import claim_folder, run_tasks
from fpe.experiments.store import provenance
from fpe.experiments.trial import model_name, run_trials
from fpe.files import write_atomically, write_json
from fpe.interference import relative_improvement

#: Trials that are trained as one.
TOGETHER = 5


def run_fit(
    dataset: Dataset,
    config: FitConfig,
    out: Path,
    jobs: int = -1,
    fresh: bool = False,
    on_trial: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train dense and expanded networks over widths and trials, and store everything in a folder.

    Five trials of a width are trained as one. Those that the folder has already are not run again, so
    that a run can be stopped and resumed, and widths and trials added.

    Parameters
    ----------
    dataset : Dataset
        What to learn and to test on.
    config : FitConfig
        How.
    out : Path
        Gets ``trials/`` (JSON records, and the expanded model of each trial), ``results.json``, and
        ``best.safetensors``, the expanded model of the highest test accuracy.
    jobs : int, default −1
        Processes at a time; −1 means one for each core. Results do not depend on it.
    fresh : bool, default False
        Throw away the trials of an earlier run.
    on_trial : callable, optional
        Gets a short text after each trial.

    Returns
    -------
    dict
        What ``results.json`` holds: configuration, data, provenance, one row for each width, all
        trials, the best one.

    Raises
    ------
    ArgumentError, ModelError, BudgetError
        As `FitConfig.check`, or if `out` holds results of another configuration.
    WriteError
        If a file cannot be written.
    KeyboardInterrupt
        After Ctrl-C, with a message that says how to resume.
    """
    config.check(dataset)
    claim_folder(out, config.identity(dataset), fresh)
    tasks = {
        f"h{hidden}-t{first}-{last}": {
            "dataset": dataset,
            "config": config,
            "hidden": hidden,
            "trials": range(first, last + 1),
            "models": out / "trials",
        }
        for hidden in config.hidden
        for first in range(0, config.trials, TOGETHER)
        for last in (min(first + TOGETHER, config.trials) - 1,)
    }

    def finished(_: str, record: dict[str, Any]) -> None:
        for trial in record["trials"]:
            if on_trial is not None:
                text = f"{trial['dense']['accuracy']:.1%} → {trial['expanded']['accuracy']:.1%}"
                on_trial(f"width {trial['hidden']}, trial {trial['trial']}: {text}")

    records = run_tasks(
        run_trials, tasks, out / "trials", config.digest(dataset), Engine(jobs=jobs), finished
    )
    trials = [trial for record in records.values() for trial in record["trials"]]
    best = max(trials, key=lambda trial: float(trial["expanded"]["accuracy"]))
    best_model = out / "trials" / model_name(best["hidden"], best["trial"])
    write_atomically(out / "best.safetensors", lambda file: shutil.copyfile(best_model, file))
    result = {
        "config": {**config.filled(), "hidden": list(config.hidden)},
        "data": _description(dataset),
        "rows": [_row([t for t in trials if t["hidden"] == hidden]) for hidden in config.hidden],
        "best": {
            "file": "best.safetensors",
            **{k: best[k] for k in ("hidden", "trial", "expanded")},
        },
        "trials": trials,
        "provenance": provenance(),
    }
    write_json(out / "results.json", result)
    return result


def _description(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "training_samples": len(dataset.X_train),
        "test_samples": len(dataset.X_test),
        "features": dataset.X_train.shape[1],
        "classes": dataset.classes,
    }


def _row(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum the trials of one width up: means, and standard deviations over the trials."""
    row: dict[str, Any] = {"hidden": trials[0]["hidden"], "trials": len(trials)}
    kinds = [kind for kind in ("dense", "expanded", "double") if kind in trials[0]]
    for kind in kinds:
        row[kind] = {key: trials[0][kind][key] for key in ("neurons", "nonzero")}
        for key in ("accuracy", "train_accuracy", "capacity", "cosine"):
            values = [t[kind][key] for t in trials]
            row[kind][key] = None if None in values else statistics.fmean(values)
            row[kind][f"{key}_sd"] = None if None in values else _spread(values)
    gains = [t["expanded"]["accuracy"] - t["dense"]["accuracy"] for t in trials]
    row["gain"], row["gain_sd"] = statistics.fmean(gains), _spread(gains)
    if "double" in kinds:
        gap = row["double"]["accuracy"] - row["dense"]["accuracy"]
        row["gap_closed"] = row["gain"] / gap if gap > 0 else None
    row["relative_improvement"] = relative_improvement(row["expanded"]["accuracy"], row["dense"]["accuracy"])
    return row


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
