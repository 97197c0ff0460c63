"""What an experiment is: a place in the paper, a question, tasks, and someone who reads the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fpe_reproduction.experiments.findings import Findings
from fpe_reproduction.experiments.networks import Source


@dataclass(frozen=True)
class Request:
    """What is asked of ``fpe reproduce``, besides the experiment.

    Attributes
    ----------
    quick : bool
        Fewer networks, trained for a shorter time.
    seed : int
        Seed of everything.
    data : dict of str to Source
        By name, for the experiments on real data; empty for each experiment's own.
    hidden : tuple of int or None
        Widths of the dense networks; None for the experiment's own.
    trials : int or None
        Networks of a kind and width; None for five.
    warmup_epochs, epochs, lr
        As for `NetworksConfig`; None for what suits the data.
    """

    quick: bool = False
    seed: int = 0
    data: Mapping[str, Source] | None = None
    hidden: tuple[int, ...] | None = None
    trials: int | None = None
    warmup_epochs: int | None = None
    epochs: int | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Task:
    """Networks that are trained together, in one process.

    Attributes
    ----------
    name : str
        Of its file.
    work : callable
        A function of a module; returns ``{"networks": …}``.
    arguments : mapping
        What it gets.
    cost : float
        In units of its group's own; the longest start first.
    identity : mapping
        What the results of its group depend on, the arguments aside.
    group : str
        The data set's name; empty for made-up data.
    """

    name: str
    work: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any]
    cost: float
    identity: Mapping[str, Any]
    group: str = ""


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper, or a question that its readers asked.

    Attributes
    ----------
    name : str
        As the command knows it.
    where : str
        Its place in the paper.
    question : str
        What is asked.
    paper : str
        What the paper reports.
    minutes : float
        About how long it takes on two cores, in full.
    tasks : callable
        Gets the request; returns the tasks.
    find : callable
        Gets the trained networks, and whether it was to be quick; returns `Findings`.
    data : tuple of str
        The real data that it runs on unless told otherwise.
    """

    name: str
    where: str
    question: str
    paper: str
    minutes: float
    tasks: Callable[[Request], list[Task]]
    find: Callable[[list[dict[str, Any]], bool], Findings]
    data: tuple[str, ...] = ()
