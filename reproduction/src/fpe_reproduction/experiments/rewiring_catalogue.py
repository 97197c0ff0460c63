"""The experiments on masks that move: what was chosen on a part of the training data, and what came of it."""

from __future__ import annotations

from dataclasses import replace

from fpe_reproduction.experiments.experiment import Experiment, Request, Task
from fpe_reproduction.experiments.moving import MOVING, STARTS
from fpe_reproduction.experiments.networks import NetworksConfig
from fpe_reproduction.experiments.real_tasks import BOTH, Plan, config_of
from fpe_reproduction.experiments.rewiring_findings import FEWER, choices, rewiring

#: As long as in the other experiments; the learning rate falls, for all networks alike.
SETTINGS = {
    "fashion-mnist": NetworksConfig(10, 10, 1e-2, decay=True),
    "banking77": NetworksConfig(50, 50, 1e-2, decay=True),
}
OTHERS = NetworksConfig(25, 25, 1e-2, decay=True)
WIDTHS = (4, 8, 16)
TRIALS = 10
#: Widths and trials of the choices.
FEW_WIDTHS, FEW_TRIALS = (8,), 5

DENSE = ("dense", "dense-x2", "steady", "steady-x2")
RIVALS = ("random", *FEWER)
MOVED = ("moved", "moved-kept", "moved-blocks", "moved-blocks-x6", "still", "rigl", "rigl-erk")


def _config(name: str, request: Request) -> NetworksConfig:
    return config_of(name, request, {name: SETTINGS.get(name, OTHERS)})


def _validated(name: str, request: Request) -> NetworksConfig:
    return replace(_config(name, request), validated=True)


def _choices_tasks(request: Request) -> list[Task]:
    plan = Plan(request, FEW_WIDTHS, FEW_TRIALS, _validated, "-validation")
    plan.add("choices-dense", DENSE)
    kinds = list(MOVING)
    for first in range(0, len(kinds), 6):
        plan.add(f"choices{first // 6}", kinds[first : first + 6])
    plan.add("starts", tuple(STARTS))
    return plan.tasks


def _rewiring_tasks(request: Request) -> list[Task]:
    plan = Plan(request, WIDTHS, TRIALS, _config, "-cosine")
    plan.add("rewiring-dense", DENSE)
    plan.add("rewiring-rivals", RIVALS)
    plan.add("rewiring", MOVED)
    return plan.tasks


REWIRING = [
    Experiment(
        "rewiring-choices",
        "asked by its readers",
        "Which weights should move, when, and where should they begin?",
        "Not in the paper, which moves masks at random.",
        60,
        _choices_tasks,
        choices,
        ("banking77",),
    ),
    Experiment(
        "rewiring",
        "asked by its readers",
        "Does a network whose masks move reach a dense one of twice the parameters?",
        "Not in the paper.",
        60,
        _rewiring_tasks,
        rewiring,
        BOTH,
    ),
]
