"""What tasks run on: the cores of this machine, or the workers of a Dask cluster. Both through joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from fpe.errors import ArgumentError, did_you_mean

ENGINES = ("loky", "dask")


@dataclass(frozen=True)
class Engine:
    """Where tasks run. Results do not depend on it.

    Attributes
    ----------
    name : str
        "loky" for processes of this machine, or "dask" for the workers of a cluster, which need fpe and
        the data. Dask runs the tasks of a worker that is lost again on another.
    jobs : int
        Processes at a time of this machine; −1 means one for each core.
    address : str or None
        Of the Dask scheduler, such as ``"tcp://10.0.0.1:8786"``.

    Raises
    ------
    ArgumentError
        For an unknown name, or an address too many or missing.
    """

    name: str = "loky"
    jobs: int = -1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            hint = did_you_mean(self.name, ENGINES)
            raise ArgumentError(f"unknown engine {self.name!r}; allowed are {' and '.join(ENGINES)}.{hint}")
        if self.jobs != -1 and self.jobs < 1:
            raise ArgumentError(
                f"jobs is {self.jobs}; give a number of processes, or -1 for one for each core."
            )
        if (self.name == "dask") != (self.address is not None):
            raise ArgumentError(
                "the engine dask needs the address of its scheduler, and only it does: --engine dask "
                "--address tcp://HOST:8786. `dask scheduler` prints the address when it starts."
            )
        if self.name == "dask" and self.jobs != -1:
            raise ArgumentError("a Dask cluster has as many processes as workers; leave jobs out.")

    def run(self, call: Callable[..., Any], work: Any, tasks: Mapping[str, dict[str, Any]]) -> Iterator[Any]:
        """Yield ``call(work, name, arguments)`` of each task, as they are finished.

        Raises
        ------
        ArgumentError
            If there is no such cluster, or its workers have several threads.
        """
        import joblib

        if not tasks:
            return
        with ExitStack() as stack:
            if self.name == "dask":
                stack.enter_context(self._cluster(stack))
                processes = -1
            else:
                cores = joblib.cpu_count() if self.jobs == -1 else self.jobs
                processes = min(cores, len(tasks))
            # Copy-on-write: workers share the data's memory, and no task can change another's.
            parallel = joblib.Parallel(
                processes, return_as="generator_unordered", mmap_mode="c", batch_size=1
            )
            yield from parallel(joblib.delayed(call)(work, name, own) for name, own in tasks.items())

    def _cluster(self, stack: ExitStack) -> AbstractContextManager[Any]:
        """Connect to the cluster for as long as the stack is open."""
        import joblib

        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ArgumentError(
                "the engine dask needs dask.distributed: pip install 'fixed-parameter-expansion[dask]'"
            ) from error
        try:
            client = stack.enter_context(Client(self.address, timeout="10s", set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise ArgumentError(f"no Dask scheduler answers at {self.address} ({error}).") from error
        threads = client.nthreads()
        if any(count != 1 for count in threads.values()):
            raise ArgumentError(
                f"the workers at {self.address} have {sorted(set(threads.values()))} threads; results depend "
                "on no other task only with one: start them with `dask worker ADDRESS --nworkers N "
                "--nthreads 1`."
            )
        context: AbstractContextManager[Any] = joblib.parallel_config("dask", client=client)
        return context
