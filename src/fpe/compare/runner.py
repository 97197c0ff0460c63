"""Run many independent tasks, here or on a cluster; what is finished stays finished."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fpe._util.files import finite, read_json, write_json
from fpe.compare.engine import Engine
from fpe.compare.store import depends, provenance
from fpe.errors import ArgumentError

#: A task's work: gets its arguments, returns what is to be stored as JSON.
Work = Callable[..., dict[str, Any]]


def run_tasks(
    work: Work,
    tasks: Mapping[str, Mapping[str, Any]],
    folder: Path,
    identity: str,
    engine: Engine | None = None,
    on_finished: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run ``work(**tasks[name])`` for each name that `folder` has no finished record of.

    Parameters
    ----------
    work : callable
        A function of a module, which other processes can import. Its result does not depend on the
        engine if it uses one thread.
    tasks : mapping of str to mapping
        Arguments by the name of the task, which becomes the name of its file.
    folder : Path
        Holds one JSON file for each finished task, written by this process. Missing folders are made.
    identity : str
        Stands for what the results depend on beside arguments, code and libraries (see
        `fpe.compare.store.depends`). Where any of these is another one, a task is run again, with a
        warning.
    engine : Engine, optional
        What runs the tasks; by default one process for each core.
    on_finished : callable, optional
        Gets the name and the record of each task, found or newly done.

    Returns
    -------
    dict
        The record of each task, in the order of `tasks`.

    Raises
    ------
    ArgumentError
        If the engine cannot be used.
    KeyboardInterrupt
        After Ctrl-C, with a message that says what is finished and how to go on.
    """
    records: dict[str, dict[str, Any]] = {}

    def finished(name: str, record: dict[str, Any]) -> None:
        records[name] = record
        if on_finished is not None:
            on_finished(name, record)

    needs = {name: depends(work, own) for name, own in tasks.items()}
    stale: dict[str, list[str]] = {}
    for name, own in needs.items():
        record = read_json(folder / f"{name}.json")
        if record is None:
            continue
        before = {"identity": record.get("identity"), **record.get("depends", {})}
        changed = [key for key, value in {"identity": identity, **own}.items() if before.get(key) != value]
        if changed:
            stale[name] = changed
        else:
            finished(name, record)
    if stale:
        why = ", ".join(dict.fromkeys(key for changed in stale.values() for key in changed))
        warnings.warn(
            f"{len(stale)} of {len(tasks)} parts in {folder} are outdated (other {why}) and are made again.",
            stacklevel=3,
        )
    left = {name: dict(tasks[name]) for name in tasks if name not in records}
    try:
        for name, record in (engine or Engine()).run(_timed, work, left):
            record = finite({**record, "identity": identity, "depends": needs[name]})
            write_json(folder / f"{name}.json", record)
            finished(name, record)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped. {len(records)} of {len(tasks)} parts are finished and kept in {folder}; "
            "run the same command again to go on from there."
        ) from None
    return {name: records[name] for name in tasks}


def call(work: Work, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of a task that is an argument itself."""
    return work(**arguments)


def _timed(work: Work, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    start = time.perf_counter()
    record = work(**arguments)
    seconds = round(time.perf_counter() - start, 2)
    return name, {**record, "seconds": seconds, "provenance": provenance()}


def claim_folder(folder: Path, identity: Mapping[str, Any], fresh: bool = False) -> None:
    """Make `folder` hold results of this configuration only.

    Parameters
    ----------
    folder : Path
        New, empty, or made by an earlier run.
    identity : mapping
        What the results depend on; stored as ``config.json``.
    fresh : bool, default False
        Throw away the trials of an earlier run.

    Raises
    ------
    ArgumentError
        If the folder holds results of another configuration; nothing is changed.
    """
    stored = read_json(folder / "config.json")
    if fresh:
        shutil.rmtree(folder / "trials", ignore_errors=True)
    elif stored is not None and stored != identity:
        differing = [
            f"{key} {stored.get(key)!r}, now {identity.get(key)!r}"
            for key in {**stored, **identity}
            if stored.get(key) != identity.get(key)
        ]
        raise ArgumentError(
            f"{folder} holds results of another configuration ({'; '.join(differing)}); give another --out, "
            "or --fresh to throw them away."
        )
    write_json(folder / "config.json", dict(identity))
