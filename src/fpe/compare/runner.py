"""Run independent tasks through joblib, here or on a cluster, and store each result at once."""

from __future__ import annotations

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
from fpe.errors import ArgumentError, FPEError

#: What a task runs: it gets the task's arguments and returns what is stored as JSON.
Work = Callable[..., dict[str, Any]]


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

    `work` is a function of a module that other processes can import. Each record is a JSON file named by its
    task, and outdated if `identity`, or what `fpe.compare.store.depends` returns, has changed: then the task
    is run again, with a warning. `jobs` is the number of processes (−1: one for each core); within
    ``joblib.parallel_config("dask")`` tasks run on that cluster. `on_finished` gets the name and the record
    of each task, whether stored before or new.

    After Ctrl-C (KeyboardInterrupt), or if a process is killed (FPEError), finished tasks stay stored, and
    the message says how to resume.
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
            f"{len(outdated)} of {len(tasks)} parts in {folder} are outdated (other {why}) and made again.",
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
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that the order of sums does not depend on what runs beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def remove_runs(folder: Path) -> None:
    """Remove JSON and models, which runs have stored, from a folder; it stays if it has other files."""
    for path in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def claim_folder(folder: Path, identity: Mapping[str, Any], fresh: bool = False) -> None:
    """Write ``config.json`` into a folder, which may hold results of this configuration only.

    `fresh` removes the trials of an earlier run. Otherwise raise `ArgumentError` if the folder holds results
    of another configuration, and change nothing.
    """
    stored = read_json(folder / "config.json")
    if fresh:
        remove_runs(folder / "trials")
    elif stored is not None and stored != identity:
        keys = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
        differing = [f"{k} {stored.get(k)!r}, now {identity.get(k)!r}" for k in keys if k != "fingerprint"]
        if "fingerprint" in keys and not {"data", "seed"} & {*keys}:  # from which it follows
            differing.insert(0, "its rows or columns have changed")
        raise ArgumentError(
            f"{folder} holds results of another configuration ({'; '.join(differing)}); give another --out, "
            "or --fresh to remove them."
        )
    write_json(folder / "config.json", dict(identity))
