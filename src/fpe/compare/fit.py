"""Compare dense and expanded networks of the same number of non-zero parameters on given data."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fpe._util.files import finite, write_atomically, write_json
from fpe.compare.best import MODEL, check_replaceable, keep_best
from fpe.compare.config import FitConfig
from fpe.compare.runner import claim_folder, run_tasks
from fpe.compare.store import commits, provenance
from fpe.compare.trial import judged_on, model_name, run_trial
from fpe.data import Dataset
from fpe.io.checkpoint import read_about
from fpe.metrics import relative_improvement


def run_fit(
    dataset: Dataset,
    config: FitConfig,
    out: Path,
    *,
    jobs: int = -1,
    fresh: bool = False,
    force: bool = False,
    on_trial: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train dense and expanded networks over widths and trials, and store everything in the folder `out`.

    It gets ``trials/`` (a record and the expanded model of each trial), ``results.json``, which is returned,
    ``best.safetensors``: the expanded model of the highest accuracy on the held-out training samples, and
    ``best.md``, its card. A better one of an earlier run stays (``kept``). If one that is there was judged by
    other rows, so that it cannot be compared, `ArgumentError` is raised before anything is trained. With
    `force` it is replaced in both cases (``replaced``).

    Each trial is stored as soon as it is finished, and not run again, so that a run can be interrupted and
    resumed, and widths and trials added; `fresh` removes the trials of an earlier run. Results do not depend
    on `jobs`, the number of processes (−1: one for each core). `on_trial` gets a short text after each trial.
    Other errors are those of `FitConfig.check`, `claim_folder` and `run_tasks`.
    """
    config.check(dataset)
    check_replaceable(out, judged_on(dataset, config), force)
    claim_folder(out, config.identity(dataset), fresh)
    tasks = {
        f"h{hidden}-t{trial}": {
            "dataset": dataset,
            "config": dataclasses.replace(config, hidden=(hidden,), trials=1),
            "hidden": hidden,
            "trial": trial,
            "models": out / "trials",
        }
        for hidden in config.hidden
        for trial in range(config.trials)
    }

    def finished(_: str, trial: dict[str, Any]) -> None:
        if on_trial is not None:
            text = f"{trial['dense']['accuracy']:.1%} → {trial['expanded']['accuracy']:.1%}"
            on_trial(f"width {trial['hidden']}, trial {trial['trial']}: {text}")

    records = run_tasks(
        run_trial, tasks, out / "trials", config.digest(dataset), jobs=jobs, on_finished=finished
    )
    trials = list(records.values())
    result = {
        "config": {**config.filled(), "hidden": list(config.hidden)},
        "data": {**_description(dataset), "validation_samples": len(config.held_out(dataset)[1])},
        "rows": [_row([t for t in trials if t["hidden"] == hidden]) for hidden in config.hidden],
        "best": _keep_best(trials, out, force),
        "trials": trials,
        "commits": commits(trials),
        "provenance": provenance(),
    }
    write_json(out / "results.json", result)
    stored: dict[str, Any] = finite(result)
    return stored


def _keep_best(trials: list[dict[str, Any]], out: Path, force: bool) -> dict[str, Any]:
    """Copy the best expanded model of these trials to ``best.safetensors``, unless a better one is there."""
    best = max(trials, key=_merit)
    model = out / "trials" / model_name(best["hidden"], best["trial"])
    about = read_about(model)

    def copy(file: Path) -> None:
        write_atomically(file, lambda temporary: shutil.copyfile(model, temporary))

    kept, replaced = keep_best(out, about, copy, force)
    if not kept:
        own = {key: best[key] for key in ("hidden", "trial", "expanded")}
        judged = about["measured"]["judged_on"]
        return {"file": MODEL, **own, "judged_on": judged, "kept": False, "replaced": replaced}
    about = read_about(out / MODEL)
    settings, measured = about["settings"], about["measured"]
    expanded = {
        "neurons": settings["hidden"] * settings["factor"],
        "nonzero": about["nonzero"],
        "accuracy": measured["test_accuracy"],
        "validation_accuracy": measured["validation_accuracy"],
        "validation_loss": measured["validation_loss"],
    }
    own = {"hidden": settings["hidden"], "trial": settings["random_state"] - settings["seed"]}
    return {
        "file": MODEL,
        **own,
        "expanded": expanded,
        "judged_on": measured["judged_on"],
        "kept": True,
        "replaced": False,
    }


def _merit(trial: dict[str, Any]) -> tuple[float, float]:
    return trial["expanded"]["validation_accuracy"], -trial["expanded"]["validation_loss"]


def _description(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "training_samples": len(dataset.X_train),
        "test_samples": len(dataset.X_test),
        "features": dataset.X_train.shape[1],
        "classes": dataset.classes,
        "majority_accuracy": dataset.majority_accuracy,
    }


def _row(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and standard deviations (``_sd``) over the trials of one width."""
    row: dict[str, Any] = {"hidden": trials[0]["hidden"], "trials": len(trials)}
    measured = ["accuracy", "train_accuracy", "capacity", "cosine"]
    for kind in ("dense", "expanded", "double"):
        if kind in trials[0]:
            frame = pd.DataFrame([trial[kind] for trial in trials])[measured].astype(float)
            row[kind] = {key: trials[0][kind][key] for key in ("neurons", "nonzero")}
            row[kind] |= (
                frame.mean(skipna=False).to_dict() | frame.std(skipna=False).add_suffix("_sd").to_dict()
            )
    gains = pd.Series([t["expanded"]["accuracy"] - t["dense"]["accuracy"] for t in trials])
    row["gain"], row["gain_sd"] = gains.mean(), gains.std()
    if "double" in row:
        gap = row["double"]["accuracy"] - row["dense"]["accuracy"]
        row["gap_closed"] = row["gain"] / gap if gap > 0 else None
    row["relative_improvement"] = relative_improvement(row["expanded"]["accuracy"], row["dense"]["accuracy"])
    return row
