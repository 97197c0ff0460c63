"""Run tasks on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import joblib

from fpe.errors import ArgumentError, did_you_mean

ENGINES = ("loky", "dask")


@contextmanager
def parallel_backend(engine: str = "loky", address: str | None = None, jobs: int = -1) -> Iterator[None]:
    """Let `fpe.compare.runner.run_tasks` run on processes of this machine (loky) or of a Dask cluster.

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
