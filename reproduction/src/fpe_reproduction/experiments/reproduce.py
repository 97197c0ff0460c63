"""Run experiments of the paper: train what is not trained yet, then say what it shows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fpe._util.files import finite, write_json
from fpe.compare.runner import call, claim_folder, run_tasks
from fpe.compare.store import commits, provenance
from fpe.data import Dataset, load
from fpe.data.named import NAMED
from fpe.errors import ArgumentError
from fpe_reproduction.experiments.catalogue import chosen
from fpe_reproduction.experiments.experiment import Experiment
from fpe_reproduction.experiments.findings import Results, corrected, sorted_findings
from fpe_reproduction.experiments.tasks import Request, Task
from fpe_reproduction.experiments.timeline import Source

#: Options of ``fpe reproduce`` that only experiments on real data have: what is allowed, and how that is
#: said.
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "hidden": (lambda widths: min(widths) >= 1, "at least 1"),
    "trials": (lambda trials: trials >= 1, "at least 1"),
    "warmup_epochs": (lambda epochs: epochs >= 0, "at least 0"),
    "epochs": (lambda epochs: epochs >= 1, "at least 1"),
    "lr": (lambda lr: 0 < lr < math.inf, "a number above 0"),
}


def reproduce(
    name: str,
    out: Path,
    request: Request | None = None,
    data: Sequence[str] = (),
    label: str | None = None,
    jobs: int = -1,
    fresh: bool = False,
    on_task: Callable[[str], None] | None = None,
    on_data: Callable[[Dataset], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run one experiment of the paper, or a group of them, and store what they show.

    Networks that `out` already has are not trained again; experiments share their networks. `out` gets a
    folder for each experiment with its ``results.json``, and the records of the networks in ``trials/`` and,
    for real data, in ``DATA/trials/``. Results do not depend on `jobs`. `on_task` gets a short text after
    each task, `on_data` each data set when it is loaded.

    Raises
    ------
    ArgumentError
        For an unknown name or unusable options, or if `out` has results of other settings.
    DataError
        If data cannot be loaded.
    KeyboardInterrupt
        After Ctrl-C, with a message that says how to resume.
    """
    request = request or Request()
    experiments = chosen(name)
    _check_request(name, experiments, request, data)
    names: list[str] = []

    @functools.cache
    def source_of(source: str) -> tuple[str, Source]:
        place = source if source in NAMED else str(Path(source).resolve())
        dataset = load(place, label=label)
        if on_data is not None:
            on_data(dataset)
        if dataset.name in names:
            raise ArgumentError(f"two of the data sets are called {dataset.name!r}; rename one of the files.")
        names.append(dataset.name)
        return dataset.name, Source(place, dataset.fingerprint, label)

    tasks = _tasks(experiments, request, data, source_of)
    groups: dict[str, dict[str, Task]] = {}
    for task in sorted((task for own in tasks.values() for task in own), key=lambda task: -task.cost):
        groups.setdefault(task.group, {})[task.name] = task
    identities = {group: dict(next(iter(own.values())).identity) for group, own in groups.items()}
    for group, identity in identities.items():
        claim_folder(out / group, identity, fresh)
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for group, own in groups.items():

        def finished(task: str, record: dict[str, Any], group: str = group) -> None:
            if on_task is not None:
                on_task(f"{len(record['networks'])} networks, {group + ', ' if group else ''}{task}")

        digest = hashlib.sha256(json.dumps(identities[group], sort_keys=True).encode()).hexdigest()[:16]
        work = {key: {"work": task.work, "arguments": task.arguments} for key, task in own.items()}
        made = run_tasks(call, work, out / group / "trials", digest, jobs=jobs, on_finished=finished)
        records |= {(group, key): record for key, record in made.items()}
    results: dict[str, dict[str, Any]] = {}
    for each in experiments:
        made_of = [(task, records[task.group, task.name]) for task in tasks[each.name]]
        results[each.name] = finite(_result(each, made_of, request, data))
        write_json(out / each.name / "results.json", results[each.name])
    return results


def count_tasks(name: str, request: Request, data: Sequence[str] = ()) -> int:
    """Return how many tasks an experiment, or a group of them, has."""
    tasks = _tasks(chosen(name), request, data, lambda source: (source, Source(source, "")))
    return len({(task.group, task.name) for own in tasks.values() for task in own})


def _tasks(
    experiments: Sequence[Experiment],
    request: Request,
    data: Sequence[str],
    source_of: Callable[[str], tuple[str, Source]],
) -> dict[str, list[Task]]:
    """Return the tasks of each experiment, on the data that was asked for or on its own."""
    made = {}
    for each in experiments:
        sources = map(source_of, data or each.data) if each.data else ()
        made[each.name] = each.tasks(dataclasses.replace(request, data=dict(sources)))
    return made


def _given(request: Request) -> dict[str, Any]:
    """Return those of `OPTIONS` that are asked for."""
    return {name: value for name in OPTIONS if (value := getattr(request, name)) is not None}


def _check_request(
    name: str, experiments: Sequence[Experiment], request: Request, data: Sequence[str]
) -> None:
    """Refuse options that would be ignored, and numbers out of range."""
    given = _given(request)
    flags = [_flag(option) for option in given] + (["--data"] if data else [])
    if flags and not any(experiment.data for experiment in experiments):
        raise ArgumentError(
            f"{', '.join(flags)} cannot be used with {name}, which runs on made-up data as the paper does; "
            "leave it out."
        )
    problems = [
        f"{_flag(option)} is {value}; give {OPTIONS[option][1]}."
        for option, value in given.items()
        if not OPTIONS[option][0](value)
    ]
    if problems:
        raise ArgumentError(" ".join(problems))


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _result(
    experiment: Experiment,
    made: Sequence[tuple[Task, dict[str, Any]]],
    request: Request,
    data: Sequence[str],
) -> dict[str, Any]:
    networks = [
        {**({"data": task.group} if task.group else {}), **network}
        for task, record in made
        for network in record["networks"]
    ]
    axis = "hidden" if experiment.data else "neurons"
    results = [
        Results.of(group, [n for n in networks if n.get("data", "") == group], axis, request.quick)
        for group in dict.fromkeys(task.group for task, _ in made)
    ]
    settings = {task.group: task.identity for task, _ in made}
    found = sorted_findings(finding for each in results for finding in experiment.findings(each))
    found["claims"] = corrected(found["claims"])
    return {
        "name": experiment.name,
        "where": experiment.where,
        "question": experiment.question,
        "paper": experiment.paper,
        "command": _command(experiment, request, data),
        "quick": request.quick,
        "settings": settings if experiment.data else settings[""],
        "networks": len(networks),
        "training_seconds": round(sum(record["seconds"] for _, record in made)),
        **found,
        "values": [{k: v for k, v in network.items() if k != "weight"} for network in networks],
        "commits": commits(record for _, record in made),
        "provenance": provenance(),
    }


def _command(experiment: Experiment, request: Request, data: Sequence[str]) -> str:
    """Return the command that makes this result again."""
    words = ["fpe reproduce", experiment.name]
    words += ["--quick"] if request.quick else []
    words += [f"--seed {request.seed}"] if request.seed else []
    words += [f"--data {source}" for source in data]
    for option, value in _given(request).items():
        words.append(f"{_flag(option)} {' '.join(map(str, value)) if option == 'hidden' else value}")
    return " ".join(words)
