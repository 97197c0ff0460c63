"""The Boolean experiments of the catalogue: their networks, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fpe_reproduction.experiments import boolean_findings as findings
from fpe_reproduction.experiments.boolean import BooleanConfig, run_row
from fpe_reproduction.experiments.experiment import Experiment, Request, Task
from fpe_reproduction.experiments.findings import Findings
from fpe_reproduction.experiments.splits_findings import clause_free
from fpe_reproduction.experiments.theory_findings import theory
from fpe_reproduction.experiments.tried import TRIED


@dataclass(frozen=True)
class Row:
    """Networks that are trained together; see `run_row`."""

    clauses: int
    neurons: tuple[int, ...]
    first_trial: int
    trials: int

    @property
    def name(self) -> str:
        """A name for its file."""
        widths = ".".join(map(str, self.neurons))
        return f"c{self.clauses}-h{widths}-t{self.first_trial}-{self.first_trial + self.trials - 1}"


#: Epochs before and after the expansion when it is to be quick.
QUICK_EPOCHS = 150

_CLAUSES = (3, 6, 8, 10, 15, 20, 25, 32)  # 12 … 128 literals, as in tables A1 and A2
_NEURONS = (4, 6, 8, 12, 16, 24, 32)


def config_of(quick: bool, seed: int) -> BooleanConfig:
    """Return the settings of all Boolean experiments."""
    config = BooleanConfig(seed=seed)
    return replace(config, warmup_epochs=QUICK_EPOCHS, epochs=QUICK_EPOCHS) if quick else config


def _case_rows(quick: bool) -> list[Row]:
    return [Row(8, (8,), first, 10) for first in ((0,) if quick else (0, 10))]


def _neuron_rows(quick: bool) -> list[Row]:
    return [Row(8, (4, 8, 16), 0, 5)] if quick else [Row(8, _NEURONS, first, 5) for first in (0, 5)]


def _clause_rows(quick: bool) -> list[Row]:
    if quick:
        return [Row(clauses, (8,), 0, 5) for clauses in (3, 8, 15, 32)]
    return [Row(clauses, (8,), 0, 10) for clauses in _CLAUSES]


def _heatmap_rows(quick: bool) -> list[Row]:
    if quick:
        return [Row(clauses, (4, 8, 16), 0, 3) for clauses in (4, 8, 16)]
    return [Row(clauses, (4, 6, 8, 12, 16), 0, 5) for clauses in (4, 8, 12, 16, 24)]


def _both_rows(quick: bool) -> list[Row]:
    return _neuron_rows(quick) + _clause_rows(quick)


def _tasks(rows: Callable[[bool], list[Row]]) -> Callable[[Request], list[Task]]:
    def tasks(request: Request) -> list[Task]:
        config = config_of(request.quick, request.seed)
        return [
            Task(
                row.name,
                run_row,
                {
                    "config": config,
                    "clauses": row.clauses,
                    "neurons": row.neurons,
                    "first_trial": row.first_trial,
                    "trials": row.trials,
                },
                row.clauses * sum(row.neurons) * row.trials,
                {"quick": request.quick, **config.to_dict()},
            )
            for row in rows(request.quick)
        ]

    return tasks


def _find(
    of: Callable[[list[dict[str, Any]]], Findings],
) -> Callable[[list[dict[str, Any]], bool], Findings]:
    return lambda networks, quick: of(networks)


#: Splits of the case study beyond the paper's own.
OTHERS = ("gram", *TRIED)


def _split_tasks(request: Request) -> list[Task]:
    return [
        replace(task, name=f"splits-{task.name}", arguments={**task.arguments, "others": OTHERS})
        for task in _tasks(_case_rows)(request)
    ]


#: In the order of the paper.
BOOLEAN = [
    Experiment(
        "case-study",
        "section 3.1, figures 2 and A1",
        "Does splitting neurons by clauses, or at random, help at 8 clauses and 8 neurons?",
        "Test accuracy: dense 78.7 %, clause-split 99.4 %, random-split 88.7 %. Gram matrices become "
        "block-diagonal when split by clauses.",
        1.5,
        _tasks(_case_rows),
        _find(findings.case_study),
    ),
    Experiment(
        "neurons",
        "figure 3a",
        "How does the gain depend on the number of neurons, at 8 clauses?",
        "Diminishing returns with more neurons; clause above random splitting.",
        4,
        _tasks(_neuron_rows),
        _find(findings.neurons),
    ),
    Experiment(
        "clauses",
        "figure 3b",
        "How does the gain depend on the number of clauses, at 8 neurons?",
        "Gains rise at first, then level off or decline beyond roughly 16 clauses.",
        6,
        _tasks(_clause_rows),
        _find(findings.clauses),
    ),
    Experiment(
        "heatmap",
        "figure 3c",
        "How do clauses and neurons act together?",
        "The benefit diminishes with fewer clauses; random splitting gives a modest gain nearly everywhere.",
        6,
        _tasks(_heatmap_rows),
        _find(findings.heatmap),
    ),
    Experiment(
        "capacity",
        "figures 4a and 4b, top; table A1",
        "Do expanded networks give features more capacity of their own?",
        "Feature capacity rises consistently against dense, most where neurons are few (the table's numbers "
        "are lost in the text).",
        10,
        _tasks(_both_rows),
        _find(findings.capacity),
    ),
    Experiment(
        "orthogonality",
        "figures 4a and 4b, bottom; table A2",
        "Are neurons of expanded networks less alike?",
        "Mean cosine similarity below dense in all but one setting (the table's numbers are lost in the "
        "text).",
        10,
        _tasks(_both_rows),
        _find(findings.orthogonality),
    ),
    Experiment(
        "regression",
        "figure 4c",
        "Does accuracy rise where interference falls?",
        "Strong correlations: improvement rises with capacity and falls with cosine similarity.",
        4,
        _tasks(_neuron_rows),
        _find(findings.regression),
    ),
    Experiment(
        "theory",
        "section A.5",
        "How often do sparse neurons see whole clauses, and how often two of them?",
        "P[cover] ≈ α^−k, collision ratio ≈ α^−(2k−1).",
        6,
        _tasks(_clause_rows),
        lambda networks, quick: theory(networks, 4_000 if quick else 20_000, seed=0),
    ),
    Experiment(
        "clause-free",
        "asked by its readers",
        "Can a split find the clauses without being told?",
        "Not in the paper, whose split by clauses knows the formula.",
        8,
        _split_tasks,
        _find(clause_free),
    ),
]
