"""What an experiment is: networks that are trained, and a function that says what they show."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fpe_reproduction.experiments.findings import Finding, Results
from fpe_reproduction.experiments.tasks import Family, Request, Rows, Task

#: Gets the networks of one data set; yields claims, tables and figures.
Findings = Callable[[Results], Iterator[Finding]]
#: All experiments by name, in the order in which they are declared.
EXPERIMENTS: dict[str, Experiment] = {}
BOTH = ("fashion-mnist", "banking77")
CIFAR = ("cifar100",)
ALL_REAL = (*BOTH, *CIFAR)


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper, or a further question."""

    name: str
    where: str  # in the paper
    question: str
    paper: str  # what the paper reports
    minutes: float  # on two cores, in full
    trains: Sequence[Rows | Family]
    findings: Findings
    data: tuple[str, ...] = ()  # the real data that it runs on unless told otherwise
    trials: int = 5  # networks of a kind and width on real data
    setup: str = ""  # "cosine": the learning rate falls; "validation": and training data are the test data

    def tasks(self, request: Request) -> list[Task]:
        """Return what is to be trained."""
        return [task for each in self.trains for task in each.tasks(request, self.trials, self.setup)]


def experiment(
    where: str, minutes: float, trains: Sequence[Rows | Family], data: tuple[str, ...] = (), **options: object
) -> Callable[[Findings], Findings]:
    """Declare a function to be an experiment; its docstring is the question and what the paper reports."""

    def declare(findings: Findings) -> Findings:
        question, _, paper = (inspect.getdoc(findings) or "").partition("\n\n")
        name = findings.__name__.replace("_", "-")
        texts = (where, question, " ".join(paper.split()))
        EXPERIMENTS[name] = Experiment(name, *texts, minutes, trains, findings, data, **options)  # type: ignore[arg-type]
        return findings

    return declare
