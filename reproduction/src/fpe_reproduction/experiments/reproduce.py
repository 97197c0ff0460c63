"""Run experiments of the paper: train what is not trained yet, then say what it shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpe import __version__
from fpe._util.files import finite, write_json
from fpe.compare.runner import call, claim_folder, run_tasks
from fpe.compare.store import commits, provenance
from fpe.data import Dataset, load
from fpe.data.named import NAMED
from fpe.errors import ArgumentError
from fpe_reproduction.experiments.catalogue import chosen
from fpe_reproduction.experiments.experiment import Experiment
from fpe_reproduction.experiments.findings import Results, sorted_findings
from fpe_reproduction.experiments.tasks import Request, Task
from fpe_reproduction.experiments.timeline import Source

#: Options of ``fpe reproduce`` that only experiments on real data have, with the least value of some.
OPTIONS = {"hidden": 1, "trials": 1, "warmup_epochs": 0, "epochs": 1, "lr": None}


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

    Networks that `out` already has are not trained again; experiments share their networks. `out` gets a folder for
    each experiment with its ``results.json``, and the records of the networks in ``trials/`` and, for real data, in
    ``DATA/trials/``. Results do not depend on `jobs`. `on_task` gets a short text after each task, `on_data`
    each data set when it is loaded.

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
    sources = _sources(experiments, data, label, on_data)
    tasks = {e.name: e.tasks(dataclasses.replace(request, data=sources[e.name])) for e in experiments}
    groups: dict[str, dict[str, Task]] = {}
    for task in sorted((task for own in tasks.values() for task in own), key=lambda task: -task.cost):
        groups.setdefault(task.group, {})[task.name] = task
    identities = {
        group: {"fpe": __version__, **next(iter(own.values())).identity} for group, own in groups.items()
    }
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
    for experiment in experiments:
        results[experiment.name] = finite(_result(experiment, tasks[experiment.name], records, request, data))
        write_json(out / experiment.name / "results.json", results[experiment.name])
    return results


def count_tasks(name: str, request: Request, data: Sequence[str] = ()) -> int:
    """Return how many tasks an experiment, or a group of them, has."""
    tasks = [
        task
        for experiment in chosen(name)
        for task in experiment.tasks(
            dataclasses.replace(request, data={each: Source(each, "") for each in data or experiment.data})
        )
    ]
    return len({(task.group, task.name) for task in tasks})


def _check_request(
    name: str, experiments: Sequence[Experiment], request: Request, data: Sequence[str]
) -> None:
    """Refuse options that would be ignored, and numbers out of range."""
    given = {f"--{k.replace('_', '-')}": getattr(request, k) for k in OPTIONS}
    given = {k: v for k, v in {**given, "--data": tuple(data) or None}.items() if v is not None}
    if given and not any(experiment.data for experiment in experiments):
        raise ArgumentError(
            f"{', '.join(given)} cannot be used with {name}, which runs on made-up data as the paper does; "
            "leave it out."
        )
    problems = []
    for option, least in OPTIONS.items():
        value = getattr(request, option)
        flag = f"--{option.replace('_', '-')}"
        if least is not None and value is not None and min(value if option == "hidden" else [value]) < least:
            problems.append(f"{flag} is {value}; give at least {least}.")
    if request.lr is not None and not 0 < request.lr < float("inf"):
        problems.append(f"--lr is {request.lr}; give a number above 0.")
    if problems:
        raise ArgumentError(" ".join(problems))


def _sources(
    experiments: Sequence[Experiment],
    data: Sequence[str],
    label: str | None,
    on_data: Callable[[Dataset], None] | None,
) -> dict[str, dict[str, Source]]:
    """Load each data set once; return those of each experiment, by name."""
    wanted = {e.name: (data or e.data) if e.data else () for e in experiments}
    loaded: dict[str, tuple[str, Source]] = {}
    for source in dict.fromkeys(source for own in wanted.values() for source in own):
        place = source if source in NAMED else str(Path(source).resolve())
        dataset = load(place, label=label)
        if on_data is not None:
            on_data(dataset)
        if any(dataset.name == other for other, _ in loaded.values()):
            raise ArgumentError(f"two of the data sets are called {dataset.name!r}; rename one of the files.")
        loaded[source] = dataset.name, Source(place, dataset.fingerprint, label)
    return {name: dict(loaded[source] for source in own) for name, own in wanted.items()}


def _result(
    experiment: Experiment,
    tasks: Sequence[Task],
    records: Mapping[tuple[str, str], dict[str, Any]],
    request: Request,
    data: Sequence[str],
) -> dict[str, Any]:
    own = [(task, records[task.group, task.name]) for task in tasks]
    networks = [
        {**({"data": task.group} if task.group else {}), **network}
        for task, record in own
        for network in record["networks"]
    ]
    if experiment.data:
        results = Results.by_data(networks, request.quick)
        settings: Any = {task.group: {"fpe": __version__, **task.identity} for task in tasks}
    else:
        results = [Results.of("", networks, "neurons", request.quick)]
        settings = {"fpe": __version__, **tasks[0].identity}
    return {
        "name": experiment.name,
        "where": experiment.where,
        "question": experiment.question,
        "paper": experiment.paper,
        "command": _command(experiment, request, data),
        "quick": request.quick,
        "settings": settings,
        "networks": len(networks),
        "training_seconds": round(sum(record["seconds"] for _, record in own)),
        **sorted_findings(finding for each in results for finding in experiment.findings(each)),
        "values": [{k: v for k, v in network.items() if k != "weight"} for network in networks],
        "commits": commits(record for _, record in own),
        "provenance": provenance(),
    }


def _command(experiment: Experiment, request: Request, data: Sequence[str]) -> str:
    """Return the command that makes this result again."""
    words = ["fpe reproduce", experiment.name]
    words += ["--quick"] if request.quick else []
    words += [f"--seed {request.seed}"] if request.seed else []
    words += [f"--data {source}" for source in data]
    for option in OPTIONS:
        value = getattr(request, option)
        text = " ".join(map(str, value)) if option == "hidden" and value else value
        words += [] if value is None else [f"--{option.replace('_', '-')} {text}"]
    return " ".join(words)
