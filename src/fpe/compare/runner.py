"""Run independent tasks on this machine or a Dask cluster, and store each result as soon as it is there."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import torch

from fpe._util.files import finite, read_json, write_json
from fpe.compare.store import depends, provenance
from fpe.errors import ArgumentError, FPEError, did_you_mean

#: What a task runs: it gets the task's arguments and returns what is stored as JSON.
Work = Callable[..., dict[str, Any]]
ENGINES = ("loky", "dask")


def run_tasks(
    work: Work,
    tasks: Mapping[str, Mapping[str, Any]],
    folder: Path,
    identity: str,
    *,
    jobs: int = -1,
    on_finished: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run ``work(**tasks[name])`` for each name without a finished record in `folder`; return all records.

    Parameters
    ----------
    work : callable
        A function of a module that other processes can import.
    tasks : mapping of str to mapping
        The arguments of each task. Its name becomes the name of its file.
    folder : Path
        Holds one JSON file for each finished task.
    identity : str
        Stands for what results depend on beside arguments, code and libraries (`fpe.compare.store.depends`).
        A record where any of these differs is outdated: the task is run again, with a warning.
    jobs : int, default −1
        Processes; −1 means one for each core. Within `parallel_backend` tasks run on the cluster.
    on_finished : callable, optional
        Gets the name and the record of each task, whether stored before or new.

    Raises
    ------
    FPEError
        If a process is killed, as by a machine out of memory. Finished tasks stay stored.
    KeyboardInterrupt
        After Ctrl-C, with a message that says what is finished and how to resume.
    """
    records: dict[str, dict[str, Any]] = {}

    def finish(name: str, record: dict[str, Any]) -> None:
        records[name] = record
        if on_finished is not None:
            on_finished(name, record)

    needs = {name: depends(work, arguments) for name, arguments in tasks.items()}
    outdated: dict[str, list[str]] = {}
    for name, need in needs.items():
        record = read_json(folder / f"{name}.json")
        if record is not None:
            before = {"identity": record.get("identity"), **record.get("depends", {})}
            changed = [k for k, value in {"identity": identity, **need}.items() if before.get(k) != value]
            if changed:
                outdated[name] = changed
            else:
                finish(name, record)
    if outdated:
        why = ", ".join(dict.fromkeys(key for changed in outdated.values() for key in changed))
        warnings.warn(
            f"{len(outdated)} of {len(tasks)} parts in {folder} are outdated (other {why}) and are made again.",
            stacklevel=3,
        )
    missing = {name: dict(tasks[name]) for name in tasks if name not in records}
    try:
        for name, record in _results(work, missing, jobs):
            record = finite({**record, "identity": identity, "depends": needs[name]})
            write_json(folder / f"{name}.json", record)
            finish(name, record)
    except (KeyboardInterrupt, BrokenExecutor) as error:
        kept = f"{len(records)} of {len(tasks)} parts are finished and kept in {folder}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped. {kept}; run the same command again to resume.") from None
        raise FPEError(
            f"a process was killed, perhaps because memory ran out. {kept}; run the same command again, with "
            "fewer --jobs, to resume."
        ) from error
    return {name: records[name] for name in tasks}


def _results(work: Work, tasks: Mapping[str, dict[str, Any]], jobs: int) -> Iterator[tuple[str, Any]]:
    if not tasks:
        return
    processes = min(joblib.effective_n_jobs(jobs), len(tasks))
    # Copy-on-write: processes share the memory of the data, and no task can change another's.
    parallel = joblib.Parallel(processes, return_as="generator_unordered", mmap_mode="c", batch_size=1)
    yield from parallel(joblib.delayed(_timed)(work, name, own) for name, own in tasks.items())


def _timed(work: Work, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    start = time.perf_counter()
    record = work(**arguments)
    seconds = round(time.perf_counter() - start, 2)
    return name, {**record, "seconds": seconds, "provenance": provenance()}


def call(work: Work, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run a task whose function is an argument."""
    return work(**arguments)


@contextmanager
def parallel_backend(engine: str = "loky", address: str | None = None, jobs: int = -1) -> Iterator[None]:
    """Let `run_tasks` run on the processes of this machine (loky) or on the workers of a Dask cluster.

    Workers need fpe and the data. Dask runs the task of a lost worker on another one.

    Raises
    ------
    ArgumentError
        For an unknown engine, a missing or needless `address` or `jobs`, no scheduler at the address, or
        workers of several threads.
    """
    if engine not in ENGINES:
        hint = did_you_mean(engine, ENGINES)
        raise ArgumentError(f"unknown engine {engine!r}; allowed are {' and '.join(ENGINES)}.{hint}")
    if (engine == "dask") != (address is not None):
        raise ArgumentError(
            "the engine dask needs the address of its scheduler, and only it does: --engine dask "
            "--address tcp://HOST:8786. `dask scheduler` prints the address when it starts."
        )
    if engine == "loky":
        yield
        return
    if jobs != -1:
        raise ArgumentError("a Dask cluster has as many processes as workers; leave jobs out.")
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ArgumentError(
            "the engine dask needs dask.distributed: pip install 'fixed-parameter-expansion[cluster]'"
        ) from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ArgumentError(f"no Dask scheduler answers at {address} ({error}).") from error
    with client:
        threads = sorted(set(client.nthreads().values()))
        if threads not in ([], [1]):
            raise ArgumentError(
                f"the workers at {address} have {threads} threads; with one a result depends on no other "
                "task: start them with `dask worker ADDRESS --nworkers N --nthreads 1`."
            )
        with joblib.parallel_config("dask", client=client):
            yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that the order of sums does not depend on what runs beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def claim_folder(folder: Path, identity: Mapping[str, Any], fresh: bool = False) -> None:
    """Write ``config.json`` into a folder, which may hold results of this configuration only.

    Parameters
    ----------
    folder : Path
        New, empty, or made by an earlier run.
    identity : mapping
        What the results depend on.
    fresh : bool, default False
        Remove the trials of an earlier run.

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
            "or --fresh to remove them."
        )
    write_json(folder / "config.json", dict(identity))
