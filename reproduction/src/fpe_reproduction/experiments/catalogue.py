"""All that `fpe reproduce` can do, by name."""

from __future__ import annotations

from fpe.errors import ArgumentError, did_you_mean
from fpe_reproduction.experiments.boolean_catalogue import BOOLEAN
from fpe_reproduction.experiments.experiment import Experiment
from fpe_reproduction.experiments.real_catalogue import REAL
from fpe_reproduction.experiments.rewiring_catalogue import REWIRING

EXPERIMENTS = [*BOOLEAN, *REAL, *REWIRING]

#: Names that stand for several experiments.
GROUPS = {
    "boolean": [e.name for e in BOOLEAN],
    "real": [e.name for e in REAL],
    "moving": [e.name for e in REWIRING],
    "all": [e.name for e in EXPERIMENTS],
}


def chosen(name: str) -> list[Experiment]:
    """Return the experiments that a name stands for.

    Raises
    ------
    ArgumentError
        For an unknown name.
    """
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    if name in GROUPS:
        return [known[each] for each in GROUPS[name]]
    if name not in known:
        names = [*GROUPS, *known]
        raise ArgumentError(
            f"there is no experiment {name!r}; allowed are list, {', '.join(names)}."
            f"{did_you_mean(name, names)}"
        )
    return [known[name]]
