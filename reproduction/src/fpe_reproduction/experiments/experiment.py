"""What an experiment is: networks that are trained, and a function that declares what is shown of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fpe_reproduction.experiments.findings import Finding, Results, Show
from fpe_reproduction.experiments.tasks import Family, Request, Rows, Task

#: All experiments by name, in the order in which they are declared.
EXPERIMENTS: dict[str, Experiment] = {}
BOTH = ("fashion-mnist", "banking77")


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper, or a further question."""

    name: str
    where: str  # in the paper
    question: str
    paper: str  # what the paper reports
    minutes: float  # on two cores, in full
    trains: Sequence[Rows | Family]
    shows: Callable[[Results], Iterable[Finding | Show]]
    data: tuple[str, ...] = ()  # the real data that it runs on unless told otherwise
    trials: int = 5  # networks of a kind and width on real data
    setup: str = ""  # "cosine": the learning rate falls; "validation": and training data are the test data

    def tasks(self, request: Request) -> list[Task]:
        """Return what is to be trained."""
        return [task for each in self.trains for task in each.tasks(request, self.trials, self.setup)]

    def findings(self, results: Results) -> Iterator[Finding]:
        """Return claims, tables and figures of the networks of one data set."""
        for shown in self.shows(results):
            yield from shown(results) if callable(shown) else [shown]


def experiment(
    where: str,
    minutes: float,
    trains: Sequence[Rows | Family],
    data: tuple[str, ...] = (),
    trials: int = 5,
    setup: str = "",
) -> Callable[[Callable[[Results], Iterable[Finding | Show]]], Callable[[Results], Iterable[Finding | Show]]]:
    """Declare a function to be an experiment.

    Its docstring is the question and what the paper reports. It gets the networks of one data set and yields
    findings, or claims, tables and figures that are declared.
    """

    def declare(
        shows: Callable[[Results], Iterable[Finding | Show]],
    ) -> Callable[[Results], Iterable[Finding | Show]]:
        question, _, paper = (inspect.getdoc(shows) or "").partition("\n\n")
        name = shows.__name__.replace("_", "-")
        texts = (where, question, " ".join(paper.split()))
        EXPERIMENTS[name] = Experiment(name, *texts, minutes, trains, shows, data, trials, setup)
        return shows

    return declare
