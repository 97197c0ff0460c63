"""What experiments train: declared as families of networks, carried out as tasks of a few networks each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fpe import __version__
from fpe_reproduction.experiments.boolean import BooleanConfig, run_row
from fpe_reproduction.experiments.classifiers import run_classifiers
from fpe_reproduction.experiments.timeline import NetworksConfig, Source, run_networks

#: How networks are trained on the data; other data gets the paper's 25 + 25 epochs. Rates, which the paper
#: does not give, are those of the highest training accuracy of dense networks, by seeds of their own.
SETTINGS = {
    "fashion-mnist": NetworksConfig(10, 10, 1e-3),
    "banking77": NetworksConfig(50, 50, 1e-2),
    "cifar100": NetworksConfig(25, 25, 1e-2),
}
#: The same for experiments whose learning rate falls.
DECAYING = {
    "fashion-mnist": NetworksConfig(10, 10, 1e-2, decay=True),
    "banking77": NetworksConfig(50, 50, 1e-2, decay=True),
    "": NetworksConfig(25, 25, 1e-2, decay=True),
}
#: Trials that are trained as one task; from `MANY` neurons on, each is a task of its own.
TOGETHER, MANY = 5, 256
#: Epochs before and after the expansion in quick runs, of Boolean networks and of others; trials of the
#: latter.
QUICK_BOOLEAN_EPOCHS, QUICK_EPOCHS, QUICK_TRIALS = 150, 5, 2


@dataclass(frozen=True)
class Request:
    """What is asked of ``fpe reproduce``, besides the experiment."""

    quick: bool = False  # fewer networks, trained for a shorter time
    seed: int = 0  # seed of everything
    # By name, for the experiments on real data; empty for each experiment's own.
    data: Mapping[str, Source] | None = None
    hidden: tuple[int, ...] | None = None  # widths of the dense networks; None for the experiment's own
    trials: int | None = None  # networks of a kind and width; None for the experiment's own
    warmup_epochs: int | None = None  # as for `NetworksConfig`; None for what suits the data
    epochs: int | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Task:
    """Networks that are trained together in one process: ``work(**arguments)``."""

    name: str  # of its file
    work: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any]
    cost: float  # the most expensive tasks start first
    identity: Mapping[str, Any]  # what all results of its group depend on
    group: str = ""  # the data set's name; empty for made-up data


def boolean_config(request: Request) -> BooleanConfig:
    """Return how the Boolean networks are trained."""
    config = BooleanConfig(seed=request.seed)
    epochs = QUICK_BOOLEAN_EPOCHS
    return replace(config, warmup_epochs=epochs, epochs=epochs) if request.quick else config


def config_of(name: str, request: Request, setup: str = "") -> NetworksConfig:
    """Return how networks are trained on this data; `setup` is that of an experiment."""
    if setup:
        config = replace(DECAYING.get(name, DECAYING[""]), validated=setup == "validation")
    else:
        config = SETTINGS.get(name, NetworksConfig())
    config = replace(config, seed=request.seed)
    if request.quick:
        config = replace(config, warmup_epochs=QUICK_EPOCHS, epochs=QUICK_EPOCHS)
    given = {k: getattr(request, k) for k in ("warmup_epochs", "epochs", "lr")}
    return replace(config, **{k: v for k, v in given.items() if v is not None})


@dataclass(frozen=True)
class Rows:
    """Boolean networks; a row is clauses, numbers of neurons, first trial, and number of trials."""

    full: Sequence[tuple[int, tuple[int, ...], int, int]]  # the rows of a full and of a quick run
    quick: Sequence[tuple[int, tuple[int, ...], int, int]]
    others: Sequence[str] = ()  # more splits, as for `run_row`

    def tasks(self, request: Request, trials: int, setup: str) -> Iterator[Task]:
        """Yield a task for each row."""
        config = boolean_config(request)
        for clauses, neurons, first, count in self.quick if request.quick else self.full:
            name = f"c{clauses}-h{'.'.join(map(str, neurons))}-t{first}-{first + count - 1}"
            arguments = {"config": config, "clauses": clauses, "neurons": neurons}
            arguments |= {"first_trial": first, "trials": count}
            if self.others:
                name, arguments = f"splits-{name}", {**arguments, "others": tuple(self.others)}
            identity = {"fpe": __version__, "quick": request.quick, **config.to_dict()}
            yield Task(name, run_row, arguments, clauses * sum(neurons) * count, identity)


@dataclass(frozen=True)
class Family:
    """Networks on real data that are trained together."""

    name: str  # experiments that ask for the same family share its networks
    kinds: Sequence[str] = ()  # of `fpe_reproduction.experiments.networks`; for CNNs and gated networks none
    # Hidden neurons of a full and of a quick run, where none are asked for.
    widths: tuple[int, ...] = (4, 8, 16, 32)
    quick: tuple[int, ...] = (4, 8)
    layers: int = 1  # hidden layers; features of a CNN
    features: int = 0
    together: bool = False  # whether one task trains all widths
    between: bool = False  # whether `widths` are those between others: whatever is asked for, less that
    small: Sequence[str] = ()  # kinds that are left out beyond `MANY` neurons
    full_only: bool = False  # whether a quick run goes without

    def tasks(self, request: Request, trials: int, setup: str) -> Iterator[Task]:
        """Yield the tasks for each data set."""
        if request.quick and self.full_only:
            return
        own = self.quick if request.quick else self.widths
        widths = tuple(request.hidden or own)
        if self.between:
            others = request.hidden or ((4, 8) if request.quick else (4, 8, 16, 32))
            widths = tuple(width for width in own if width not in others)
        trials = request.trials or (QUICK_TRIALS if request.quick else trials)
        parts = [widths] if self.together else [(width,) for width in widths]
        for (data, source), some in itertools.product((request.data or {}).items(), parts):
            config = config_of(data, request, setup)
            about = {
                "fpe": __version__,
                "quick": request.quick,
                "data": data,
                "fingerprint": source.fingerprint,
            }
            kinds = tuple(k for k in self.kinds if max(some) <= MANY or k not in self.small)
            special: dict[str, Any] = {"kinds": kinds, "layers": self.layers}
            work: Callable[..., dict[str, Any]] = run_networks
            number = self.layers if self.layers > 1 else ""
            if not kinds:
                special, work, number = {"features": self.features}, run_classifiers, self.features or ""
            together = 1 if max(some) >= MANY else TOGETHER
            for first in range(0, trials, together):
                numbers = range(first, min(first + together, trials))
                name = f"{self.name}{number}-h{'.'.join(map(str, some))}-t{numbers[0]}-{numbers[-1]}"
                arguments = {"source": source, "config": config, "hidden": some, "trials": numbers, **special}
                cost = sum(some) * (len(kinds) or 4) * len(numbers)
                group = f"{data}-{setup}" if setup else data
                yield Task(name, work, arguments, cost, {**about, **config.to_dict()}, group)
