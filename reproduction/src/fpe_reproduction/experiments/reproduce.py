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
from fpe_reproduction.experiments.experiment import Experiment, Request, Task
from fpe_reproduction.experiments.networks import Source


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

    What `out` has already is not trained again; experiments share their networks.

    Parameters
    ----------
    name : str
        An experiment of the catalogue, or ``boolean``, ``real`` or ``all``.
    out : Path
        Gets a folder for each experiment with its ``results.json``; the records of the networks, in
        ``trials/`` and, of real data, in ``DATA/trials/``.
    request : Request, optional
        How; by default in full, as the catalogue says.
    data : sequence of str
        Names or files for the experiments on real data; by default each experiment's own.
    label : str, optional
        Column of the labels of a table; by default found.
    jobs : int, default −1
        Processes; −1 means one for each core. Results do not depend on it.
    fresh : bool, default False
        Throw away the trials of an earlier run.
    on_task : callable, optional
        Gets a short text after each task.
    on_data : callable, optional
        Gets each data set when it is read.

    Returns
    -------
    dict
        What each ``results.json`` holds, by the name of the experiment.

    Raises
    ------
    ArgumentError
        For an unknown name or what it cannot use, or if `out` holds results of other settings.
    DataError
        If data cannot be loaded.
    KeyboardInterrupt
        After Ctrl-C, with a message that says how to go on.
    """
    request = request or Request()
    experiments = chosen(name)
    _check_request(name, experiments, request, data)
    tasks = _tasks(experiments, request, _sources(experiments, data, label, on_data))
    groups: dict[str, list[Task]] = {}
    for each in tasks.values():
        for task in each:
            groups.setdefault(task.group, []).append(task)
    for group, own in groups.items():
        claim_folder(out / group, {"fpe": __version__, **own[0].identity}, fresh)
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for group, own in groups.items():
        identity = {"fpe": __version__, **own[0].identity}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        works = {task.name: task for task in sorted(own, key=lambda task: -task.cost)}

        def finished(task: str, record: dict[str, Any], group: str = group) -> None:
            if on_task is not None:
                on_task(f"{len(record['networks'])} networks, {group + ', ' if group else ''}{task}")

        made = run_tasks(
            call,
            {key: {"work": task.work, "arguments": task.arguments} for key, task in works.items()},
            out / group / "trials",
            digest,
            jobs=jobs,
            on_finished=finished,
        )
        records |= {(group, key): record for key, record in made.items()}
    results = {}
    for experiment in experiments:
        found = _result(experiment, tasks[experiment.name], records, request, data)
        results[experiment.name] = finite(found)
        write_json(out / experiment.name / "results.json", results[experiment.name])
    return results


def count_tasks(name: str, request: Request, data: Sequence[str] = ()) -> int:
    """Return how many tasks an experiment, or a group of them, has."""
    experiments = chosen(name)
    fake = {each: Source(each, "") for e in experiments for each in data or e.data}
    tasks = _tasks(experiments, request, {e.name: {k: fake[k] for k in data or e.data} for e in experiments})
    return len({(task.group, task.name) for each in tasks.values() for task in each})


def _check_request(
    name: str, experiments: Sequence[Experiment], request: Request, data: Sequence[str]
) -> None:
    """Refuse what would be ignored, and numbers that mean nothing."""
    given = {
        f"--{k.replace('_', '-')}": getattr(request, k)
        for k in ("hidden", "trials", "warmup_epochs", "epochs", "lr")
    }
    given = {
        key: value for key, value in {**given, "--data": tuple(data) or None}.items() if value is not None
    }
    if given and not any(experiment.data for experiment in experiments):
        raise ArgumentError(
            f"{', '.join(given)} cannot be used with {name}, which runs on made-up data as the paper does; "
            "leave it out."
        )
    least = {"--trials": 1, "--warmup-epochs": 0, "--epochs": 1}
    problems = [
        f"{key} is {given[key]}; give at least {n}."
        for key, n in least.items()
        if key in given and given[key] < n
    ]
    if "--hidden" in given and min(given["--hidden"]) < 1:
        problems.append(f"--hidden is {given['--hidden']}; give at least 1.")
    if "--lr" in given and not 0 < given["--lr"] < float("inf"):
        problems.append(f"--lr is {given['--lr']}; give a number above 0.")
    if problems:
        raise ArgumentError(" ".join(problems))


def _sources(
    experiments: Sequence[Experiment],
    data: Sequence[str],
    label: str | None,
    on_data: Callable[[Dataset], None] | None,
) -> dict[str, dict[str, Source]]:
    """Load each data set once; return for each experiment those that it runs on, by name."""
    loaded: dict[str, tuple[str, Source]] = {}
    for experiment in experiments:
        for source in (data or experiment.data) if experiment.data else ():
            if source not in loaded:
                place = source if source in NAMED else str(Path(source).resolve())
                dataset = load(place, label=label)
                if on_data is not None:
                    on_data(dataset)
                loaded[source] = dataset.name, Source(place, dataset.fingerprint, label)
    names = [name for name, _ in loaded.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(f"two of the data sets are called {twice[0]!r}; rename one of the files.")
    return {
        e.name: dict(loaded[source] for source in (data or e.data)) if e.data else {} for e in experiments
    }


def _tasks(
    experiments: Sequence[Experiment], request: Request, sources: Mapping[str, Mapping[str, Source]]
) -> dict[str, list[Task]]:
    return {e.name: e.tasks(dataclasses.replace(request, data=sources[e.name])) for e in experiments}


def _result(
    experiment: Experiment,
    tasks: Sequence[Task],
    records: Mapping[tuple[str, str], dict[str, Any]],
    request: Request,
    data: Sequence[str],
) -> dict[str, Any]:
    own = [(task, records[task.group, task.name]) for task in tasks]
    extra = [{"data": task.group} if task.group else {} for task, _ in own]
    networks = [
        {**more, **n} for (_, record), more in zip(own, extra, strict=True) for n in record["networks"]
    ]
    settings: dict[str, Any] = {"fpe": __version__, **tasks[0].identity}
    if experiment.data:
        settings = {task.group: {"fpe": __version__, **task.identity} for task in tasks}
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
        **experiment.find(networks, request.quick).to_dict(),
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
    words += [f"--hidden {' '.join(map(str, request.hidden))}"] if request.hidden else []
    for name in ("trials", "warmup_epochs", "epochs", "lr"):
        value = getattr(request, name)
        words += [] if value is None else [f"--{name.replace('_', '-')} {value}"]
    return " ".join(words)
