"""Run experiments of the paper: train what is not trained yet, then say what it shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fpe._version import __version__
from fpe.experiments.boolean import run_row
from fpe.experiments.catalogue import Experiment, Row, chosen, config_of
from fpe.experiments.runner import claim_folder, run_tasks
from fpe.experiments.store import provenance, write_json


def reproduce(
    name: str,
    out: Path,
    quick: bool = False,
    seed: int = 0,
    jobs: int = -1,
    fresh: bool = False,
    on_row: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run one experiment of the paper, or a group of them, and store what they show.

    What `out` has already is not trained again; experiments share their networks.

    Parameters
    ----------
    name : str
        An experiment of the catalogue, or ``boolean`` or ``all``.
    out : Path
        Gets ``trials/`` (a record for each row of networks) and a folder for each experiment with its
        ``results.json``.
    quick : bool, default False
        Fewer networks, trained for a shorter time: to see that everything works, not to judge the paper.
    seed : int, default 0
        Seed of everything.
    jobs : int, default −1
        Processes at a time; −1 means one for each core. Results do not depend on it.
    fresh : bool, default False
        Throw away the trials of an earlier run.
    on_row : callable, optional
        Gets a short text after each row of networks.

    Returns
    -------
    dict
        What each ``results.json`` holds, by the name of the experiment.

    Raises
    ------
    ArgumentError
        For an unknown name, or if `out` holds results of other settings.
    KeyboardInterrupt
        After Ctrl-C, with a message that says how to go on.
    """
    experiments = chosen(name)
    config = config_of(quick, seed)
    identity = {"fpe": __version__, "quick": quick, **config.to_dict()}
    claim_folder(out, identity, fresh)
    rows = {row.name: row for experiment in experiments for row in experiment.rows(quick)}
    # The longest first, so that no core is left with one at the end.
    order = sorted(rows.values(), key=lambda row: -row.clauses * sum(row.neurons) * row.trials)
    tasks = {
        row.name: {
            "config": config,
            "clauses": row.clauses,
            "neurons": row.neurons,
            "first_trial": row.first_trial,
            "trials": row.trials,
        }
        for row in order
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def finished(task: str, record: dict[str, Any]) -> None:
        if on_row is not None:
            on_row(f"{len(record['networks'])} networks, {record['networks'][0]['clauses']} clauses")

    records = run_tasks(run_row, tasks, out / "trials", digest, jobs, finished)
    networks = {task: record["networks"] for task, record in records.items()}
    seconds = {task: record["seconds"] for task, record in records.items()}
    command = f"fpe reproduce {{}}{' --quick' if quick else ''}{f' --seed {seed}' if seed else ''}"
    results = {}
    for experiment in experiments:
        results[experiment.name] = _result(experiment, networks, seconds, identity, command, quick)
        write_json(out / experiment.name / "results.json", results[experiment.name])
    return results


def count_rows(name: str, quick: bool) -> int:
    """Return how many rows of networks an experiment, or a group of them, trains."""
    return len({row.name for experiment in chosen(name) for row in experiment.rows(quick)})


def _result(
    experiment: Experiment,
    networks: dict[str, list[dict[str, Any]]],
    seconds: dict[str, float],
    identity: dict[str, Any],
    command: str,
    quick: bool,
) -> dict[str, Any]:
    rows: list[Row] = experiment.rows(quick)
    read = [network for row in rows for network in networks[row.name]]
    return {
        "name": experiment.name,
        "where": experiment.where,
        "question": experiment.question,
        "paper": experiment.paper,
        "command": command.format(experiment.name),
        "settings": identity,
        "networks": len(read),
        "training_seconds": round(sum(seconds[row.name] for row in rows)),
        **experiment.find(read, quick).to_dict(),
        "values": [{k: v for k, v in network.items() if k != "weight"} for network in read],
        "provenance": provenance(),
    }
